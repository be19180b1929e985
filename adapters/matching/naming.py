"""How a checkpoint names a backbone's modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lorary.adapters.base.modules import ModuleMap

_CANDIDATES = 8  # a file of strangers may begin its keys in ten thousand ways; a real one in two or three


@dataclass(frozen=True)
class Naming:
    """How a checkpoint names the backbone's modules: ``there`` stands where the backbone has ``here``.

    A classifier's BERT calls its body ``bert.``, a question-answering Llama calls it ``transformer.``, and an adapter
    trained on the body alone gives it no name.
    """

    there: str
    here: str

    @classmethod
    def guess(cls, names: Iterable[str], modules: ModuleMap) -> Naming:
        """The naming under which most of ``names`` are modules of the backbone; the plainest one among equals."""
        names = list(names)
        first = Counter(f"{name.split('.')[0]}." for name in names).most_common(_CANDIDATES)
        candidates = [
            cls(there, here) for there in ("", *(name for name, _ in first)) for here in ("", modules.body_prefix)
        ]

        def known(naming: Naming) -> int:
            paths = map(naming.to_backbone, names)
            return sum(path is not None and path in modules for path in paths)

        return max(candidates, key=known)

    def to_backbone(self, name: str) -> str | None:
        """The backbone's path for a module of the checkpoint, None where the name begins otherwise."""
        return self.here + name.removeprefix(self.there) if name.startswith(self.there) else None

    def to_checkpoint(self, path: str) -> str:
        """The checkpoint's name for a module of the backbone."""
        return self.there + path.removeprefix(self.here) if path.startswith(self.here) else path

    def locate(self, name: str, modules: ModuleMap) -> str | None:
        """The path of module ``name`` in the backbone, None where it has none."""
        for path in (self.to_backbone(name), name):
            if path is not None and path in modules:
                return path
        return None
