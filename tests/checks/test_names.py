"""The nearest known name, where one is near."""

from mgqe.checks.names import did_you_mean


def test_the_nearest_name():
    assert did_you_mean("rang", ["rank", "bits"]) == " (did you mean 'rank'?)"
    assert did_you_mean("rang", iter({"bits": 8})) == ""
