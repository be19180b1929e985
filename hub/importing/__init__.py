"""Taking adapters into a catalogue from where other tools, and other catalogues, have put them."""

from lorary.hub.importing.folders import import_folders
from lorary.hub.importing.outcome import Outcome
from lorary.hub.importing.registries import import_registry

__all__ = ["Outcome", "import_folders", "import_registry"]
