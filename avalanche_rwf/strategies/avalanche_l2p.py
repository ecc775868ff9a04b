"""Avalanche's built-in Learning to Prompt, as shipped and repaired for online streams.

Both classes are ``avalanche.training.supervised.l2p.LearningToPrompt`` with Avalanche's own
``ViTWithPrompt`` and prompt pool, built on the installed timm by
:func:`avalanche_rwf.compat.timm_compat`, and given the weights of the backbone that every other
method of a comparison uses:

* :class:`LearningToPromptAsShipped` (``avalanche-l2p-as-shipped``) changes the construction and
  nothing else. It knows where experiences begin and which classes they have.
* :class:`OnlineL2P` (``avalanche-l2p``) repairs what goes wrong on an online stream; its
  docstring lists each defect.

Either makes two full forward passes per image, one without prompts for the query and one with
them; neither is cached.

Source of the method: Wang et al., "Learning to prompt for continual learning", CVPR 2022
(arXiv 2112.08654).
"""
