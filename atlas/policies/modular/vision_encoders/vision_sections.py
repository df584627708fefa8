"""The vision encoders of a modular policy by name: their sections of the config, each of which builds its encoder.

Another package adds one in the group `atlas.vision_encoders`: a section derived from `VisionSection`, with the
encoder's name as the default of `name`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from atlas.config.lora_section import LoRAConfig, check_one_way_to_train
from atlas.config.section import Layers, Section, Size, UserPath
from atlas.system.plugins import PluginTable

if TYPE_CHECKING:
    from atlas.policies.modular.vision_encoders.vision_contract import VisionEncoder

VISION_KEY = "model.vision.pretrained"  # the setting that names weights
LORA_KEY = "model.vision.lora"


@dataclass(frozen=True)
class EncoderNeeds:
    """The task that an encoder is built for: images float [B, views, 3, image_size, image_size] in [0, 1] and
    LanguageTokens of language_dim numbers become tokens [B, N, dim].

    `dim` is the width that fusion would like; an encoder's own `dim` says what it returns. source: where to read
    pretrained weights instead of where the section says; without read_weights they are not read.
    """

    views: int
    image_size: int  # pixels
    dim: int
    language_dim: int
    source: Path | None = None
    read_weights: bool = True


class VisionSection(Section):
    """The members that every vision encoder's section has."""

    name: str

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Raises TypeError for a `build` of another form, such as that of packages for older versions of Atlas."""
        super().__pydantic_init_subclass__(**options)
        takes = list(signature(cls.build).parameters)[1:]
        if len(takes) != 1:
            raise TypeError(
                f"{cls.__name__}.build takes {', '.join(takes) or 'nothing'}; it should take one EncoderNeeds, whose "
                "fields are what it took before: build(self, needs)"
            )

    def build(self, needs: EncoderNeeds) -> VisionEncoder:
        """The encoder. Raises InputError."""
        raise NotImplementedError(f"{type(self).__name__} has no build")

    @property
    def rate_factor(self) -> float:
        """The factor of training.learning_rate for its weights."""
        return 1.0

    @property
    def patch(self) -> int | None:
        """The patch size in pixels that an image's sides must be multiples of; None if any size will do."""
        return None

    @property
    def gives_patches(self) -> bool:
        """Whether its own tokens are a grid of patches, which `model.alignment` can align."""
        return False

    @property
    def reads_images(self) -> bool:
        """Whether it looks at images at all."""
        return True

    @property
    def stays_the_same(self) -> bool:
        """Whether its outputs stay the same during training, so that `data.feature_cache` may hold them; such a section
        is a `CachedEncoder` (atlas/policies/feature_cache_filling.py)."""
        return False

    @property
    def compiles(self) -> bool:
        """Whether it is compiled with torch.compile, whatever training says."""
        return False

    def check_pretrained(self) -> None:
        """See ModelConfig."""

    def memory_advice(self) -> Sequence[str]:
        """See ModelConfig."""
        return ()


class NoVisionConfig(VisionSection):
    """None: the policy acts on proprio alone, as in gym:Pendulum-v1."""

    name: Literal["none"] = "none"

    def build(self, needs: EncoderNeeds) -> VisionEncoder:
        from atlas.policies.modular.vision_encoders.vision_contract import NoVision

        return NoVision(needs.dim)

    @property
    def reads_images(self) -> bool:
        return False


class KeypointVisionConfig(VisionSection):
    """A small convolutional net whose last maps become keypoints: positions, not only features."""

    name: Literal["keypoints"] = "keypoints"
    width: Annotated[int, Field(ge=8, le=65536, multiple_of=8)] = 16
    keypoints: Size = 32

    def build(self, needs: EncoderNeeds) -> VisionEncoder:
        from atlas.policies.modular.vision_encoders.keypoints import KeypointVisionEncoder

        return KeypointVisionEncoder(self, needs.views, needs.dim, needs.language_dim)


class VGGTVisionConfig(VisionSection):
    """VGGT's alternating-attention aggregator, trained from scratch in a small form."""

    name: Literal["vggt"] = "vggt"
    stem: Literal["keypoints", "conv", "patch"] = "keypoints"
    stem_width: Annotated[int, Field(ge=8, le=65536, multiple_of=8)] = (
        16  # channels of the keypoint stem's first convolution
    )
    keypoints: Size = 32  # per view; keypoint stem only
    keypoint_groups: Size = 8  # tokens per view; keypoint stem only
    embed_dim: Size = 128
    depth: Layers = 2
    num_heads: Size = 4
    num_register_tokens: Annotated[int, Field(ge=0, le=65536)] = 4
    patch_size: Size = 16
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    rope_freq: Annotated[float, Field(gt=0)] = 100.0

    @model_validator(mode="after")
    def _sizes_agree(self) -> VGGTVisionConfig:
        if self.keypoints % self.keypoint_groups:
            raise ValueError(f"keypoints is {self.keypoints}, not a multiple of keypoint_groups {self.keypoint_groups}")
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(
                f"embed_dim is {self.embed_dim}; it must be a multiple of 4 x num_heads ({self.num_heads})"
            )
        return self

    def build(self, needs: EncoderNeeds) -> VisionEncoder:
        from atlas.policies.modular.vision_encoders.vggt_vision import VGGTVisionEncoder

        return VGGTVisionEncoder(self, needs.views, needs.image_size, needs.language_dim)

    @property
    def patch(self) -> int | None:
        return self.patch_size if self.gives_patches else None

    @property
    def gives_patches(self) -> bool:
        return self.stem != "keypoints"


class PretrainedVGGTConfig(VisionSection):
    """The published VGGT aggregator with its weights. The sizes are VGGT-1B's; another checkpoint needs its own."""

    name: Literal["vggt_pretrained"] = "vggt_pretrained"
    pretrained: UserPath = "facebook/VGGT-1B"  # a .safetensors file, a folder with a model.safetensors, or a hub id
    freeze: bool = True
    lora: LoRAConfig | None = None
    learning_rate_factor: Annotated[float, Field(gt=0)] = 0.1  # of training.learning_rate, for what is not frozen
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of frozen weights; auto: bf16 on GPUs, fp32 on CPUs
    recompute: bool = False  # with lora or without freeze: recompute blocks in the backward pass instead of keeping all
    compile: bool = False  # torch.compile, with static shapes
    pool: Size = 2  # patch tokens are averaged over pool x pool of them before anything reads them
    embed_dim: Size = 1024
    depth: Layers = 24
    num_heads: Size = 16
    num_register_tokens: Annotated[int, Field(ge=0, le=65536)] = 4
    img_size: Size = 518  # of the position grid in the checkpoint
    patch_size: Size = 14
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    rope_freq: Annotated[float, Field(gt=0)] = 100.0
    patch_embed_depth: Layers = 24
    patch_embed_num_heads: Size = 16

    _one_way = model_validator(mode="after")(check_one_way_to_train)

    def build(self, needs: EncoderNeeds) -> VisionEncoder:
        from atlas.policies.modular.vision_encoders.vggt_backbone import PretrainedVGGTEncoder

        return PretrainedVGGTEncoder(self, needs.source, needs.read_weights)

    @property
    def rate_factor(self) -> float:
        return 1.0 if self.freeze else self.learning_rate_factor

    @property
    def patch(self) -> int | None:
        return self.patch_size

    @property
    def stays_the_same(self) -> bool:
        return self.freeze and self.lora is None

    @property
    def compiles(self) -> bool:
        return self.compile

    def check_pretrained(self, key: str = VISION_KEY) -> None:
        """key: the setting that names the weights, for messages."""
        from atlas.policies.modular.vision_encoders.vggt_backbone import check_backbone

        check_backbone(self, key)

    def memory_advice(self) -> Sequence[str]:
        advice = "model.vision.freeze=true, with model.vision.lora for what should still be learned"
        return () if self.freeze else (advice,)

    # ---- as a CachedEncoder ------------------------------------------------------------------------------

    def feature_shape(self, image_size: int) -> tuple[int, int]:
        side = -(-(image_size // self.patch_size) // self.pool)
        return 1 + self.num_register_tokens + side * side, 2 * self.embed_dim

    def feature_source(self) -> dict[str, Any]:
        from atlas.policies.pretrained_weights import frozen_dtype

        return {"backbone_precision": str(frozen_dtype(self.precision)).removeprefix("torch."), "pool": self.pool}

    def weights_hash(self) -> str:
        from atlas.policies.vggt.published_checkpoint import published_hash
        from atlas.system.hub import find_weights

        return published_hash(find_weights(self.pretrained, VISION_KEY))

    def build_cached(self) -> VisionEncoder:
        from atlas.policies.modular.vision_encoders.vggt_backbone import PretrainedVGGTEncoder

        return PretrainedVGGTEncoder(self)


class HuggingFaceVisionConfig(VisionSection):
    """A published image encoder (DINOv3, DINOv2, SigLIP 2, SigLIP, CLIP, ViT), with the sizes in its own config. Each
    view is read separately, and yields its patches' tokens."""

    name: Literal["huggingface"] = "huggingface"
    pretrained: UserPath  # a folder, or a name on the Hugging Face hub: facebook/dinov3-vitb16-pretrain-lvd1689m
    freeze: bool = True
    lora: LoRAConfig | None = None
    learning_rate_factor: Annotated[float, Field(gt=0)] = 0.1  # of training.learning_rate, if it is not frozen
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of frozen weights; auto: bf16 on GPUs, fp32 on CPUs
    pool: Size = 1  # patch tokens are averaged over pool x pool of them before anything reads them

    _one_way = model_validator(mode="after")(check_one_way_to_train)

    def build(self, needs: EncoderNeeds) -> VisionEncoder:
        from atlas.policies.modular.vision_encoders.huggingface_vision import HuggingFaceVisionEncoder

        return HuggingFaceVisionEncoder(self, needs.views, needs.image_size, needs.source, needs.read_weights)

    @property
    def rate_factor(self) -> float:
        return 1.0 if self.freeze else self.learning_rate_factor

    @property
    def gives_patches(self) -> bool:
        return not self.stays_the_same

    @property
    def stays_the_same(self) -> bool:
        return self.freeze and self.lora is None

    def check_pretrained(self) -> None:
        from atlas.policies.adapters import check_adapters
        from atlas.policies.huggingface_folder import read_image_settings
        from atlas.policies.modular.vision_encoders.huggingface_images import ImageTower, find_image_model

        if self.lora is not None:
            check_adapters(LORA_KEY)
        folder, name = find_image_model(self.pretrained, weights=True), f"'{self.pretrained}'"
        ImageTower.find(folder, name)
        read_image_settings(folder, name, VISION_KEY)

    def memory_advice(self) -> Sequence[str]:
        advice = "model.vision.freeze=true, with model.vision.lora for what should still be learned"
        return () if self.freeze else (advice,)

    # ---- as a CachedEncoder ------------------------------------------------------------------------------

    def feature_shape(self, image_size: int) -> tuple[int, int]:
        from atlas.policies.modular.vision_encoders.huggingface_images import ImageTower, find_image_model

        tower = ImageTower.find(find_image_model(self.pretrained, weights=False), f"'{self.pretrained}'")
        side = -(-tower.patches_a_side(image_size) // self.pool)
        return side * side, tower.dim

    def feature_source(self) -> dict[str, Any]:
        from atlas.policies.pretrained_weights import frozen_dtype

        return {"backbone_precision": str(frozen_dtype(self.precision)).removeprefix("torch."), "pool": self.pool}

    def weights_hash(self) -> str:
        from atlas.policies.modular.vision_encoders.huggingface_images import ImageTower, find_image_model

        return ImageTower.find(find_image_model(self.pretrained, weights=True), f"'{self.pretrained}'").weights_hash()

    def build_cached(self) -> VisionEncoder:
        from atlas.policies.modular.vision_encoders.huggingface_vision import HuggingFaceVisionEncoder

        return HuggingFaceVisionEncoder(self, views=None)


VISION_ENCODERS: PluginTable[type[VisionSection]] = PluginTable(
    "atlas.vision_encoders",
    {
        "keypoints": KeypointVisionConfig,
        "vggt": VGGTVisionConfig,
        "vggt_pretrained": PretrainedVGGTConfig,
        "huggingface": HuggingFaceVisionConfig,
        "none": NoVisionConfig,
    },
)
