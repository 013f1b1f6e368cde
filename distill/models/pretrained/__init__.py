"""Pre-trained wav2vec 2.0, HuBERT, WavLM and Whisper models of other libraries, as recognisers of ours."""

from distill.models.pretrained.importing import Imported, build_imported, differences
from distill.models.pretrained.sources import Checkpoint, letters_of, read_checkpoint

__all__ = ["Checkpoint", "Imported", "build_imported", "differences", "letters_of", "read_checkpoint"]
