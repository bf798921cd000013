"""HiCMAE: hierarchical contrastive masked autoencoders for audio-visual emotion recognition.

The library part of the project: configuration, model, data, training and the record that a run leaves behind.
"""

__version__ = "0.1.0"
