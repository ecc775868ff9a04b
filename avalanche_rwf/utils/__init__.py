"""What every floor may use: checks of arguments, safe files, code from outside."""
