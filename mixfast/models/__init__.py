"""Networks and the state that methods keep beside them. Modules here know no loss and no data."""

from mixfast.models.backbone import Backbone
from mixfast.models.config import ModelConfig, build_encoder
from mixfast.models.encoder import Encoder, Encoding

__all__ = ["Backbone", "Encoder", "Encoding", "ModelConfig", "build_encoder"]
