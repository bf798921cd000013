"""The generated corpus, the default that needs no download: animated faces with voices, made on this machine.

    hicmae data generate                      # or, in Python:
    generate(Path("data/synthetic"))

Two binary factors make four classes. Arousal is only in the voice (pitch, melody, loudness, spectral tilt, breath), valence
only in the face (mouth corners, brows, lids, cheeks): who hears without seeing, or sees without hearing, is right half the
time. Both streams follow one script of syllables, so the mouth moves with the sound, and one speaker keeps face and voice:
that is what pre-training can find. The parts, from what is said to what is stored:

    script    syllables and their timing; the random streams
    voices    source-filter synthesis        faces, portrait, drawing   animated vector drawing
    clip      one clip of both               write     H.264 and AAC files
    corpus    the corpus on disk             layouts   the same clips as any supported corpus lays out its files
"""

from hicmae.data.synthetic.corpus import CLASSES, GENERATOR_VERSION, generate
from hicmae.data.synthetic.layouts import LAYOUTS, write_layout

__all__ = ["CLASSES", "GENERATOR_VERSION", "LAYOUTS", "generate", "write_layout"]
