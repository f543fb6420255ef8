"""Tables that one machine cannot hold: rows sharded and trained by torchrec, quantised after the look-up by MGQE.

See docs/torchrec.md. Needs torchrec and fbgemm-gpu, which say for themselves which build of torch they take.
"""

try:
    import torchrec as _torchrec  # noqa: F401
except Exception as error:  # fbgemm-gpu of another torch fails with OSError or AttributeError
    raise ImportError(
        f"mgqe.torchrec needs torchrec ({type(error).__name__}: {error}). With CUDA: pip install 'mgqe[torchrec]'. On "
        "CPUs: pip install --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0, then pip install tensordict "
        "torchmetrics==1.0.3 tqdm pyre-extensions iopath. docs/torchrec.md has both in full"
    ) from error

from mgqe.torchrec.collection import QuantizedEmbeddingBagCollection, QuantizedEmbeddingCollection
from mgqe.torchrec.freezing import freeze
from mgqe.torchrec.launch import RankLostError, process_group
from mgqe.torchrec.ranks import merge_counts
from mgqe.torchrec.serving import CompactEmbeddingBagCollection, CompactEmbeddingCollection, load

__all__ = [
    "CompactEmbeddingBagCollection",
    "CompactEmbeddingCollection",
    "QuantizedEmbeddingBagCollection",
    "QuantizedEmbeddingCollection",
    "RankLostError",
    "freeze",
    "load",
    "merge_counts",
    "process_group",
]
