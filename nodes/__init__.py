"""The pack's V3 nodes: schema, checks, one call, output. Their ids and those of inputs and wires are a contract."""

from .auto_edit import BaretAutoEdit
from .bam import BaretBAMEdit
from .clip_optimise import BaretClipOptimise
from .direction import BaretTextDirection
from .fine_tuning import BaretImagic, BaretOneImageLoRA
from .grid import BaretLabelledGrid
from .guidance import BaretModelGuidance
from .inversion import BaretInversion, BaretNullTextInversion, BaretTTISInversion
from .maps import BaretAttentionMaps
from .masactrl import BaretMasaCtrlEdit
from .metrics import BaretEditMetrics
from .picture import BaretFitPicture, BaretPickEdit
from .prompt_to_prompt import BaretPromptToPromptEdit
from .report import BaretInversionReport
from .sampler import BaretToSampler
from .storage import BaretLoadInversion, BaretSaveInversion
from .sweep import BaretEditSweep
from .text_layer import BaretTextLayer
from .transition import BaretTransitionEmbedding
from .world import BaretWorldLoader, BaretWorldScene

NODES = [
    BaretTTISInversion,
    BaretTransitionEmbedding,
    BaretBAMEdit,
    BaretAutoEdit,
    BaretToSampler,
    BaretSaveInversion,
    BaretLoadInversion,
    BaretNullTextInversion,
    BaretInversion,
    BaretPromptToPromptEdit,
    BaretMasaCtrlEdit,
    BaretImagic,
    BaretOneImageLoRA,
    BaretModelGuidance,
    BaretTextDirection,
    BaretClipOptimise,
    BaretTextLayer,
    BaretInversionReport,
    BaretEditMetrics,
    BaretEditSweep,
    BaretAttentionMaps,
    BaretLabelledGrid,
    BaretFitPicture,
    BaretPickEdit,
    BaretWorldLoader,
    BaretWorldScene,
]
