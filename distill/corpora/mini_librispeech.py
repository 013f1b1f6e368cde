"""Mini LibriSpeech, https://www.openslr.org/31: five hours of speech, for a first run on real audio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from distill.corpora.corpus import Options, Roles
from distill.corpora.download import Published
from distill.corpora.librispeech import LEXICON, OPENSLR, LibriSpeech, text_file
from distill.corpora.listing import Listing

HOME = "https://www.openslr.org/31"


class MiniLibriSpeech(LibriSpeech):
    """train-clean-5, whose audio serves without its text as well; dev-clean-2 is dev and test, half its speakers each.

    The text corpus is the transcripts of train-clean-5; the published 3-gram of LibriSpeech's text decodes.
    """

    roles = Roles(
        labelled=("train-clean-5",),
        unlabelled=(),
        dev=("dev-clean-2-even",),
        tests={"test-clean-2": ("dev-clean-2-odd",)},
        hidden_share=1.0,
    )
    published = (
        Published(HOME, f"{OPENSLR}/31/train-clean-5.tar.gz", 332954390, "md5:5df7d4e78065366204ca6845bb08f490",
                  "LibriSpeech/train-clean-5"),
        Published(HOME, f"{OPENSLR}/31/dev-clean-2.tar.gz", 126046265, "md5:6d7ab67ac6a1d2c993d050e16d61080d",
                  "LibriSpeech/dev-clean-2"),
        text_file(LEXICON),
        text_file("3-gram.pruned.3e-7.arpa.gz", 13654242, needed=False),
    )  # fmt: skip
    published_arpas: Mapping[int, str] = {3: "3-gram.pruned.3e-7.arpa.gz"}
    unlabelled_parts = ()
    layout, has_mini = "mini_librispeech", False

    @classmethod
    def wanted(cls, options: Options) -> tuple[Published, ...]:
        """All of it."""
        return cls.published

    def holder(self, part: str) -> str:
        """Both halves lie in dev-clean-2."""
        return part.removesuffix("-even").removesuffix("-odd")

    def listing(self, part: str) -> Listing:
        """The two halves of dev-clean-2 are the speakers of even and of odd number."""
        listing = super().listing(part)
        if part == self.holder(part):
            return listing
        remainder = int(part.endswith("-odd"))
        wanted = [u for u in listing.utterances if int(u.speaker or 0) % 2 == remainder]
        return replace(listing, utterances=wanted, left_out=[] if remainder else listing.left_out)
