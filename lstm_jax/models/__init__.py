"""Flax modules that tasks train, one file per model; they contain no data and no loss."""

from lstm_jax.models.autoregressive_forecaster import AutoregressiveForecaster
from lstm_jax.models.base import Carry, Compiled, Model, Outputs, evaluation
from lstm_jax.models.classifier import BidirectionalClassifier, Classifier, ClassifierCarry
from lstm_jax.models.cnn_lstm import VideoClassifier
from lstm_jax.models.ctc import CTCCarry, CTCModel
from lstm_jax.models.encoder_forecaster import (
    EncoderForecaster,
    ForecasterEnsemble,
    StaticCell,
)
from lstm_jax.models.forecaster import SegmentForecaster
from lstm_jax.models.language import LanguageModel
from lstm_jax.models.music import PianoRollCarry, PianoRollModel
from lstm_jax.models.seq2seq import Decoding, EncoderDecoder, Seq2Seq
from lstm_jax.models.text_classifier import TextClassifier
from lstm_jax.models.transformer import TransformerLanguageModel
from lstm_jax.models.transformer_seq2seq import TransformerSeq2Seq
from lstm_jax.models.video import ConvForecaster, FullyConnectedForecaster, VideoForecaster

__all__ = [
    "AutoregressiveForecaster",
    "BidirectionalClassifier",
    "CTCCarry",
    "CTCModel",
    "Carry",
    "Classifier",
    "ClassifierCarry",
    "Compiled",
    "ConvForecaster",
    "Decoding",
    "EncoderDecoder",
    "EncoderForecaster",
    "ForecasterEnsemble",
    "FullyConnectedForecaster",
    "LanguageModel",
    "Model",
    "Outputs",
    "PianoRollCarry",
    "PianoRollModel",
    "SegmentForecaster",
    "Seq2Seq",
    "StaticCell",
    "TextClassifier",
    "TransformerLanguageModel",
    "TransformerSeq2Seq",
    "VideoClassifier",
    "VideoForecaster",
    "evaluation",
]
