"""The nearest known name, where one is near, and names before messages."""

import pytest

from mgqe.checks.names import did_you_mean, errors_about


def test_the_nearest_name():
    assert did_you_mean("rang", ["rank", "bits"]) == " (did you mean 'rank'?)"
    assert did_you_mean("rang", iter({"bits": 8})) == ""


@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_errors_keep_their_type_and_name_what_they_are_about(error):
    with pytest.raises(error, match=r"^item: too many$"), errors_about("item"):
        raise error("too many")
