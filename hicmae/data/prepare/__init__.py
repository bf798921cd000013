"""From a corpus as distributed to 16 kHz mono sound and face crops: `hicmae data prepare CORPUS`.

faces      who is in a frame (MTCNN; its weights are inside its package)
track      one person through the clip, smoothed over time
crop       the square around the face, and the files written from it
pipeline   a whole corpus: parallel, resumable, with a report of clips without a face
"""
