"""ResNet, the LSTM language model and the CNN-LSTM, assembled from `pykernels.nn`."""
