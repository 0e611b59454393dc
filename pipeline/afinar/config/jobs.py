"""Old import path; goes away."""

from afinar.config.base import POSITIONAL as POSITIONAL, JobConfig as JobConfig, Precision as Precision, as_dict as as_dict, fingerprint as fingerprint  # noqa: E501
from afinar.config.forget import ForgetConfig as ForgetConfig
from afinar.config.ingest import Fit as Fit, IngestConfig as IngestConfig, StoreKind as StoreKind
from afinar.config.label import LabelConfig as LabelConfig
from afinar.config.status import StatusConfig as StatusConfig
from afinar.config.train import NAMED_WEIGHTS as NAMED_WEIGHTS, ClassWeights as ClassWeights, Head as Head, Optimizer as Optimizer, Output as Output, Pool as Pool, Schedule as Schedule, TrainConfig as TrainConfig  # noqa: E501
