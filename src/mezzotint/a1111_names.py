"""What AUTOMATIC1111 calls samplers and schedulers, and ours for them: one table, read both ways. Must not do I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.families.table import SCHEDULER_OPTIONS

PREVIEW_EVERY_STEPS = 5  # how often a session of this dialect shows its image on its way


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerName:
    """One of AUTOMATIC1111's samplers. `automatic` is the scheduler that it means by itself, empty: the class's own."""

    name: str
    aliases: tuple[str, ...]
    scheduler: str
    automatic: str
    algorithm_type: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleName:
    """One of AUTOMATIC1111's schedulers, as options of ours."""

    name: str
    label: str
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any]


def _sampler(name: str, aliases: str, scheduler: str, automatic: str, algorithm_type: str = "") -> SamplerName:
    spelt = tuple(aliases.split())
    return SamplerName(
        name=name, aliases=spelt, scheduler=scheduler, automatic=automatic, algorithm_type=algorithm_type
    )


SAMPLERS = (
    _sampler("DPM++ 2M", "k_dpmpp_2m", "dpm_multistep", "karras"),
    _sampler("DPM++ SDE", "k_dpmpp_sde", "dpm_sde", "karras"),
    _sampler("DPM++ 2M SDE", "k_dpmpp_2m_sde", "dpm_multistep", "exponential", "sde-dpmsolver++"),
    _sampler("DPM++ 2S a", "k_dpmpp_2s_a", "dpm_singlestep", "karras"),
    _sampler("Euler a", "k_euler_a k_euler_ancestral", "euler_ancestral", "normal"),
    _sampler("Euler", "k_euler", "euler", "normal"),
    _sampler("LMS", "k_lms", "lms", "normal"),
    _sampler("Heun", "k_heun", "heun", "normal"),
    _sampler("DPM2", "k_dpm_2", "kdpm2", "karras"),
    _sampler("DPM2 a", "k_dpm_2_a", "kdpm2_ancestral", "karras"),
    _sampler("DDIM", "ddim", "ddim", ""),
    _sampler("PLMS", "plms", "pndm", ""),
    _sampler("UniPC", "unipc", "unipc", ""),
    _sampler("LCM", "k_lcm", "lcm", ""),
    _sampler("DDPM", "ddpm", "ddpm", ""),
)

SCHEDULES = (
    ScheduleName(name="automatic", label="Automatic", options={}),
    ScheduleName(name="karras", label="Karras", options={"karras_sigmas": True}),
    ScheduleName(name="exponential", label="Exponential", options={"exponential_sigmas": True}),
    ScheduleName(name="beta", label="Beta", options={"beta_sigmas": True}),
    ScheduleName(name="normal", label="Normal", options={"timestep_spacing": "linspace"}),
    ScheduleName(name="uniform", label="Uniform", options={"timestep_spacing": "linspace"}),
    ScheduleName(name="simple", label="Simple", options={"timestep_spacing": "trailing"}),
    ScheduleName(
        name="sgm_uniform", label="SGM Uniform", aliases=("SGMUniform",), options={"timestep_spacing": "trailing"}
    ),
    ScheduleName(name="ddim", label="DDIM", options={"timestep_spacing": "leading"}),
)

UPSCALERS = {
    "Latent": "latent",
    "Latent (antialiased)": "latent_antialiased",
    "Latent (bicubic)": "latent_bicubic",
    "Latent (bicubic antialiased)": "latent_bicubic_antialiased",
    "Latent (nearest)": "latent_nearest",
    "Latent (nearest-exact)": "latent_nearest_exact",
    "Lanczos": "lanczos",
    "Nearest": "nearest",
}  # of the second pass; AUTOMATIC1111's "None" is Lanczos there

_SAME = frozenset({"", "automatic", "use same scheduler"})
_BY_SAMPLER = {one.lower(): sampler for sampler in SAMPLERS for one in (sampler.name, *sampler.aliases)}
_BY_SCHEDULE = {
    one.lower(): schedule for schedule in SCHEDULES for one in (schedule.name, schedule.label, *schedule.aliases)
}


class UnknownName(Exception):
    """No sampler or scheduler of that name; the text is for the caller."""


class UnknownSchedule(UnknownName):
    """No scheduler of that name, beside a sampler that is here."""


class Unfit(Exception):
    """A sampler and a scheduler that do not go together; the text is for the caller."""


def find(sampler: str, schedule: str | None) -> tuple[SamplerName, dict[str, Any]]:
    """The sampler and the `scheduler_options` of the pair. "X Karras" is X with that scheduler, when no other is named.

    Raises UnknownName or Unfit.
    """
    wanted, scheduled = sampler.strip().lower(), (schedule or "").strip().lower()
    if wanted not in _BY_SAMPLER:
        wanted, _, last = wanted.rpartition(" ")
        if wanted not in _BY_SAMPLER or last not in ("karras", "exponential"):
            raise UnknownName(f"sampler {sampler[:64]!r} is not here; {', '.join(one.name for one in SAMPLERS)}")
        scheduled = last if scheduled in _SAME else scheduled
    found = _BY_SAMPLER[wanted]
    if scheduled in _SAME:
        scheduled, asked = found.automatic, False
    else:
        asked = True
    options = _options(found, scheduled, asked)
    return found, options | ({"algorithm_type": found.algorithm_type} if found.algorithm_type else {})


def upscaler(name: str) -> str:
    """Ours. Raises UnknownName."""
    found = {theirs.lower(): ours for theirs, ours in UPSCALERS.items()} | {"none": "lanczos"}
    if (ours := found.get(name.strip().lower())) is None:
        raise UnknownName(f"upscaler {name[:64]!r} is not here; {', '.join(UPSCALERS)}")
    return ours


def asked_steps(run: int, strength: float) -> int:
    """How many are to be asked for so that so many run: AUTOMATIC1111 counts those that run in a second pass."""
    if strength <= 0:
        return run
    asked = int(min(1000.0, max(1.0, run / strength)))  # the answer or one below, as the quotient is rounded
    return asked if int(asked * strength) >= run else min(1000, asked + 1)  # int: as `Request.steps` counts


def cut(run: int, strength: float) -> str:
    """What to tell where fewer steps of a second pass run than so many, for no more can be asked for; else empty."""
    asked = asked_steps(run, strength)
    most = max(1, int(asked * strength))
    if strength <= 0 or most >= run:
        return ""
    return f"{most} of {run} steps of the second pass run: of {asked}, the most there are, strength leaves so many"


def of(scheduler: str, options: Mapping[str, Any], own_spacing: str = "") -> tuple[str, str]:
    """The names of a sampler and a scheduler for a scheduler of ours; the second empty when it says nothing.

    Where silence would be read as another scheduler, it is that of the model's own timestep spacing, else Normal.
    """
    algorithm = options.get("algorithm_type", "")
    candidates = [one for one in SAMPLERS if one.scheduler == scheduler]
    sampler = next((one for one in candidates if one.algorithm_type and one.algorithm_type == algorithm), candidates[0])
    for schedule in SCHEDULES:
        if schedule.options and all(options.get(name) == value for name, value in schedule.options.items()):
            return sampler.name, schedule.label
    if sampler.automatic and "timestep_spacing" in SCHEDULER_OPTIONS[scheduler]:
        for schedule in SCHEDULES:
            if schedule.name != sampler.automatic and schedule.options == {"timestep_spacing": own_spacing}:
                return sampler.name, schedule.label
    return sampler.name, "Normal" if sampler.automatic in ("karras", "exponential") else ""


def _options(sampler: SamplerName, schedule: str, asked: bool) -> dict[str, Any]:
    if not schedule:
        return {}
    found = _BY_SCHEDULE.get(schedule)
    if found is None:
        raise UnknownSchedule(f"scheduler {schedule[:64]!r} is not here; {', '.join(one.name for one in SCHEDULES)}")
    can = SCHEDULER_OPTIONS[sampler.scheduler]
    if found.options.keys() <= can:
        return dict(found.options)
    if found.name == "normal" or not asked:  # what it does anyway
        return {}
    fitting = ", ".join(one.name for one in SCHEDULES if one.options.keys() <= can)
    raise Unfit(f"sampler {sampler.name!r} cannot do scheduler {found.name!r}; it can: {fitting}")
