import torch

from avalanche_rwf.routing.priors import centre_prior
from avalanche_rwf.strategies.registry import create_strategy, resolve_options


def build(tools, **options):
    return create_strategy(
        "rwf-lda", backbone=tools.vit(), num_classes=6,
        loop={"train_mb_size": 8, "evaluator": tools.silent()}, **{"blocks": "last 2", **options},
    )


def test_routes_look_around_the_centre_with_the_width_asked_for(tools):
    for centre in (resolve_options("rwf-lda", {})["centre"], 0.8):
        layer = build(tools, centre=centre).model.layer(3)
        torch.testing.assert_close(layer.log_prior, centre_prior((4, 4), centre))


def test_without_a_centre_all_tokens_are_alike(tools):
    assert resolve_options("rwf-lda", {"centre": "none"})["centre"] is None
    assert build(tools, centre=None).model.layer(3).log_prior is None


def test_statistics_are_of_one_set_of_routes(tools, scenario):
    """After the first batch nothing moves: what a sample gave then, it gives now."""
    s = build(tools)
    s.train(scenario.train_stream[0], eval_streams=[], shuffle=False)
    kept = {k: v.clone() for k, v in s.model.layers.state_dict().items()}
    moments = s.model.head.moments
    s.train(scenario.train_stream[1], eval_streams=[], shuffle=False)
    assert all(torch.equal(v, kept[k]) for k, v in s.model.layers.state_dict().items())
    images = torch.stack([x for x, *_ in scenario.train_stream[0].dataset])
    targets = torch.tensor([int(y) for _, y, *_ in scenario.train_stream[0].dataset])
    features = s.model.eval().features(images)
    for c in targets.unique():
        torch.testing.assert_close(moments.means()[c].float(), features[targets == c].mean(0),
                                   rtol=1e-4, atol=1e-4)
