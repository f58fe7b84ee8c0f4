"""The settings of a run as frozen sections, with a sentence under each field.

Facts about the data are not settings: see `artifacts.DataFacts`. How a `Config` comes about from
presets and overrides is told in `config`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """How images become training data."""

    resolution: int | None = Field(
        None,
        ge=4,
        le=1024,
        description="Side of the square images in pixels; unset: chosen from the data.",
    )
    split: tuple[float, float, float] = Field(
        (0.8, 0.1, 0.1),
        description="Shares of training, validation and test images; they add up to 1.",
    )
    split_seed: int = Field(0, description="Changes which images fall into which split.")
    flip: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Random horizontal flips; auto: only if the classes look the same mirrored.",
    )
    balance: Literal["prepared", "none", "sqrt", "equal"] = Field(
        "prepared",
        description="How often images are drawn: as prepared, alike, or by class size^-1/2 or ^-1.",
    )
    augment: Literal["auto", "none", "nonleaky"] = Field(
        "auto",
        description="Transforms the network is told of, so that none leaks into samples; auto: "
        "from 16 pixels on, where under 100,000 images are seen over 1,000 times each.",
    )
    augment_p: float = Field(
        0.12, ge=0, le=1, description="Probability of each of these transforms."
    )
    augment_colour: bool = Field(
        False, description="Whether they change colours too; for images of 3 channels."
    )
    max_unreadable: float = Field(
        0.05, ge=0, le=1, description="Share of unreadable files above which the run is refused."
    )
    memory_gib: float = Field(
        4.0, gt=0, description="Above this size the decoded images go to a memory-mapped file."
    )


class ModelConfig(Section):
    """The network."""

    architecture: Literal["edm2", "adm", "dit", "mp_dit"] = Field(
        "edm2",
        description="U-Net with kept magnitudes, its baseline, or a transformer of either kind.",
    )
    ladder: Literal["A", "B", "C", "D", "E", "F", "G"] | None = Field(
        None,
        description="Rung of EDM2's ablation, with its training settings; A, B: the ADM network.",
    )
    channels: int = Field(
        32, ge=8, description="Channels of the first level; width of a transformer."
    )
    channel_mult: tuple[int, ...] = Field(
        (1, 2), min_length=1, description="Width of each level, in multiples of `channels`."
    )
    channel_mult_noise: int | None = Field(
        None, ge=1, description="Noise features in multiples of `channels`; unset: as level 1."
    )
    channel_mult_emb: int | None = Field(
        None,
        ge=1,
        description="Embedding in multiples of `channels`; unset: the widest level, ADM: 4.",
    )
    num_blocks: int = Field(1, ge=1, description="Residual blocks per level.")
    depth: int = Field(12, ge=1, description="Blocks of a transformer.")
    patch: int = Field(2, ge=1, description="Side of a transformer's patches in pixels.")
    attn_resolutions: tuple[int, ...] = Field(
        (8,), description="Resolutions whose blocks attend to the whole image."
    )
    channels_per_head: int = Field(64, ge=8, description="Channels of one attention head.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of activations dropped in each block."
    )
    activation: Literal["auto", "silu", "leaky_relu", "elu", "relu"] = Field(
        "auto", description="Activation function; auto: silu in U-Nets and mp_dit, gelu in dit."
    )
    init: Literal["auto", "xavier", "he", "unit"] = Field(
        "auto", description="First weights of networks that do not normalise them (A to C, dit)."
    )
    normalisation: Literal["auto", "pixel", "group", "batch", "none"] = Field(
        "auto", description="Normalisation of activations in U-Nets; auto: as the rung has it."
    )
    skips: bool = Field(True, description="Whether a U-Net's decoder sees the encoder's outputs.")
    resample_filter: tuple[float, ...] = Field(
        (1.0, 1.0),
        min_length=2,
        description="Filter that halves and doubles resolution, even length.",
    )
    res_balance: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="Weight of the residual branch in a sum; mp_dit: less beyond 6 blocks.",
    )
    attn_balance: float = Field(
        0.3, gt=0, lt=1, description="Weight of the attention branch in a sum; likewise."
    )
    label_balance: float = Field(
        0.5, gt=0, lt=1, description="Weight of the class in the embedding."
    )
    concat_balance: float = Field(
        0.5, gt=0, lt=1, description="Weight of the skip in a concatenation."
    )
    clip_act: float = Field(
        256.0, gt=0, description="Activations are clamped to plus or minus this."
    )


class DiffusionConfig(Section):
    """What the network predicts, at which noise levels it learns, and how errors are weighted."""

    formulation: Literal["edm", "eps", "x0", "v", "flow"] = Field(
        "edm",
        description="EDM; noise, image or velocity prediction of DDPM; or rectified flow.",
    )
    schedule: Literal["linear", "cosine"] = Field(
        "cosine", description="Noise schedule of eps, x0 and v."
    )
    diffusion_steps: int = Field(
        1000, ge=2, description="Diffusion steps of eps, x0 and v: the noise levels they learn."
    )
    noise: Literal["log_normal", "logit_normal", "uniform"] = Field(
        "log_normal",
        description="Noise while training: normal in ln(sigma), in logit(time), or uniform time.",
    )
    P_mean: float = Field(-0.8, description="Mean of ln(sigma) (logit-normal: of logit(time)).")
    P_std: float = Field(1.4, gt=0, description="Standard deviation of the same.")
    weighting: Literal["uncertainty", "edm", "target", "min_snr", "p2"] = Field(
        "uncertainty",
        description="Weight of errors by noise level: learned, EDM's, none, min-SNR or P2.",
    )
    min_snr_gamma: float = Field(5.0, gt=0, description="Ceiling of min-SNR.")
    p2_gamma: float = Field(1.0, ge=0, description="Exponent of P2; 0 leaves the SNR.")
    p2_k: float = Field(1.0, gt=0, description="Offset added to the signal-to-noise ratio in P2.")


class TrainingConfig(Section):
    """The optimisation. Every schedule is a function of images seen."""

    images: int = Field(
        1_000_000,
        ge=1,
        description="Images the network sees; schedules are drawn over this length.",
    )
    batch: int = Field(64, ge=1, description="Images per update.")
    micro_batch: int | None = Field(
        None, ge=1, description="Images per forward pass; unset: the batch. The update is the same."
    )
    batch_ramp: float = Field(
        0.0, ge=0, le=1, description="Share of the run in which the batch grows; 0: full at once."
    )
    batch_ramp_from: float = Field(
        0.25, gt=0, le=1, description="Share of the batch with which batch_ramp begins."
    )
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop", "muon"] = Field(
        "adam",
        description="How gradients become updates; muon: the matrices inside blocks, Adam the "
        "rest.",
    )
    lr: float = Field(0.01, gt=0, description="Highest learning rate; the scale is Adam's.")
    warmup: float = Field(0.02, ge=0, le=1, description="Share of the run in which the rate rises.")
    decay: Literal[
        "inverse_sqrt",
        "constant",
        "cosine",
        "linear",
        "step",
        "cyclical",
        "one_cycle",
        "plateau",
    ] = Field("inverse_sqrt", description="How the rate falls after warm-up.")
    decay_start: float = Field(
        0.3, gt=0, le=1, description="Share of the run after which inverse_sqrt begins to fall."
    )
    decay_floor: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Lowest share of lr that decay leaves; unset: 0, cyclical and plateau 0.01.",
    )
    decay_steps: tuple[float, ...] = Field(
        (0.5, 0.75), description="Shares of the run at which step lowers the rate."
    )
    decay_factor: float = Field(
        0.3, gt=0, lt=1, description="What step and plateau leave of the rate each time."
    )
    decay_cycles: int = Field(4, ge=1, description="Rises and falls of cyclical over the run.")
    decay_patience: int = Field(
        2, ge=0, description="Validations without a lower error that plateau lets pass."
    )
    betas: tuple[float, float] = Field((0.9, 0.99), description="Adam's averaging constants.")
    momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the last update that is kept; unset: sgd 0.9, rmsprop 0, muon 0.95.",
    )
    eps: float = Field(1e-8, gt=0, description="Adam's guard against division by zero.")
    update_clip: bool = Field(
        False, description="Lower a tensor's rate where its second moment lags (StableAdamW)."
    )
    grad_clip: Literal["none", "value", "norm", "adaptive", "quantile"] = Field(
        "none",
        description="What bounds gradients: each value, the norm, each tensor's norm by its "
        "weights' or the norm by recent ones.",
    )
    grad_clip_at: float | None = Field(
        None,
        gt=0,
        description="The bound of grad_clip; unset: 1, adaptive 0.01 of the weights' norm, "
        "quantile 0.9.",
    )
    grad_normalise: bool = Field(
        False, description="Divide the gradient by its norm: only its direction counts."
    )
    l1: float = Field(
        0.0, ge=0, description="Added to the gradient of matrices: l1 times the weights' signs."
    )
    l2: float = Field(
        0.0, ge=0, description="Added to the gradient of matrices: l2 times the weights."
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Share of a matrix that lr times this takes away, past the gradient."
    )
    ema_stds: tuple[float, ...] = Field(
        (0.05, 0.10),
        min_length=1,
        description="Relative widths of the averages that are followed; `poise ema` makes others.",
    )
    label_dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of labels hidden, so that classes can be guided later."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic of the network; auto: bf16 where the machine does it fast."
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="Compile the step; auto: where the run is long enough to gain from it."
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads; unset: one per core, or with a budget what is measured faster.",
    )
    max_skipped: int = Field(
        50, ge=1, description="Non-finite updates in a row after which the run stops."
    )


class CadenceConfig(Section):
    """How often the run looks at itself: times over the whole run."""

    logs: int = Field(400, ge=1, description="Lines of metrics.jsonl.")
    checkpoints: int = Field(
        50, ge=1, description="Saved states to resume from; two or three are kept."
    )
    validations: int | None = Field(
        None,
        ge=1,
        description="Passes over the validation probe; unset: at most 10, within 5% of training.",
    )
    grids: int | None = Field(
        None,
        ge=1,
        description="Sample grids at fixed seeds; unset: at most 8, within 5% of training.",
    )
    evaluations: int | None = Field(
        None,
        ge=0,
        description="Snapshots scored while training; unset: at most 8, within evaluation.share.",
    )
    snapshots: int = Field(
        16, ge=1, description="Snapshots kept, to sample from and to make other averages of."
    )
    snapshot_gib: float = Field(
        20.0, gt=0, description="Disk space of all snapshots; fewer are kept where they exceed it."
    )


class StabilityConfig(Section):
    """The guard: what watches the run, and what it may do."""

    policy: Literal["off", "warn", "repair"] = Field(
        "repair",
        description="off: only bad inputs and numbers are left out; warn: say; repair: act too.",
    )
    probe_every: int = Field(100, ge=1, description="Updates between two looks inside the network.")
    max_repairs: int = Field(
        8, ge=0, description="Rollbacks and other repairs before the run stops with the reason."
    )
    preflight: bool = Field(
        True, description="Checks of memory, disk, rate, data and resuming before the first update."
    )
    early_stop: bool = Field(
        True, description="End when held-out images have got worse for long, and keep the best."
    )


class ValidationConfig(Section):
    """The denoising error on held-out images, with noise fixed per image and level."""

    images: int | None = Field(
        None, ge=1, description="Images of the validation probe; unset: at most 256, within the 5%."
    )
    bands: int = Field(8, ge=8, description="Noise levels, evenly spaced in ln(sigma).")
    sigma_min: float = Field(0.02, gt=0, description="Lowest noise level of the probe.")
    sigma_max: float = Field(20.0, gt=0, description="Highest noise level of the probe.")


class SamplingConfig(Section):
    """How the probability-flow equation is solved."""

    solver: Literal["heun", "euler", "dpmpp_2m", "dpmpp_3m", "unipc"] = Field(
        "heun", description="heun calls the network 2 steps - 1 times, the others steps times."
    )
    steps: int = Field(18, ge=2, description="Noise levels visited.")
    sigma_min: float = Field(0.002, gt=0, description="Last noise level before zero.")
    sigma_max: float = Field(80.0, gt=0, description="First noise level.")
    rho: float | None = Field(
        None,
        gt=0,
        description="Spacing of the levels, larger: finer near zero; unset: 7, multistep 25.",
    )
    churn: float = Field(
        0.0, ge=0, description="Fresh noise added on the way (heun, euler); 0: deterministic."
    )
    churn_min: float = Field(0.0, ge=0, description="Lowest noise level with fresh noise.")
    churn_max: float = Field(1e9, gt=0, description="Highest noise level with fresh noise.")
    churn_noise: float = Field(1.0, gt=0, description="Deviation of the fresh noise.")
    batch: int = Field(64, ge=1, description="Images drawn at once; changes speed, not images.")


class EvaluationConfig(Section):
    """Scores of samples against held-out images."""

    samples: int | None = Field(
        None, ge=10, description="Images drawn; unset: 100 to 2000, within 10% of training."
    )
    features: Literal["auto", "pixels", "random_conv", "domain", "inception", "dinov2", "clip"] = (
        Field(
            "auto",
            description="Feature space of the scores; auto: pixels up to 16x16, else random_conv.",
        )
    )
    feature_weights: str | None = Field(
        None, description="Weights of inception, dinov2 or clip: a file, or Hugging Face's folder."
    )
    neighbours: int = Field(5, ge=1, description="k of precision, recall, density and coverage.")
    share: float = Field(
        0.05, ge=0, le=1, description="Part of training that scores of snapshots may cost; 0: none."
    )
    snapshot_samples: int | None = Field(
        None, ge=10, description="Images drawn for each of these; unset: 100 to 500."
    )
    encoder_images: int | None = Field(
        None,
        ge=0,
        description="Images seen by the network that tells classes apart and gives the domain "
        "features; unset: within 10% of training; 0: no such network.",
    )


class Config(Section):
    """All settings of one run."""

    seed: int = Field(0, ge=0, description="One number from which all randomness follows.")
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="Dashboards that get a copy of the logs; each needs its extra."
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    training: TrainingConfig = TrainingConfig()
    cadence: CadenceConfig = CadenceConfig()
    stability: StabilityConfig = StabilityConfig()
    validation: ValidationConfig = ValidationConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
