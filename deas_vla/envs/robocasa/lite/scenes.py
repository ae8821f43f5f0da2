"""Which lite kitchens a configuration draws its episodes from."""

from collections.abc import Sequence

from deas_vla.envs.robocasa.lite import catalogue
from deas_vla.envs.robocasa.lite.checks import check_layout, check_style
from deas_vla.errors import DeasError

# RoboCasa's names for kitchens to train in and kitchens to test in mean the same here.
_SYNONYMS = {"pretrain": "train", "target": "test"}


def lite_split(split: str) -> str:
    """``train``, ``varied``, ``validation``, ``test``, ``all``, or RoboCasa's name for a split.

    Raises:
        DeasError: None of them.
    """
    name = _SYNONYMS.get(split, split)
    if name not in (*catalogue.LITE_SPLITS, "all"):
        raise DeasError(
            f"split '{split}' is unknown in lite kitchens: use {', '.join(catalogue.LITE_SPLITS)} "
            "or all"
        )
    return name


def instance_split(split: str) -> str | None:
    """RoboCasa's name for the object instances of a split; None for all of them.

    Validation has kitchens of its own, and the objects to train with.
    """
    return {"test": "target", "all": None}.get(lite_split(split), "pretrain")


def lite_scenes(
    task: str, split: str, layouts: Sequence[int | str], styles: Sequence[int | str]
) -> list[tuple[str, str]]:
    """The (layout, style) pairs of a split, each as likely.

    Args:
        task: Its current name.
        split: As for `lite_split`.
        layouts: Keep only these of the split, or use these YAML files; all of it when empty.
        styles: Likewise.

    Raises:
        DeasError: A task that lite kitchens have not what it takes for, an unknown split, layout or
            style, one outside the split, or a description that RoboCasa could not build.
    """
    if task not in catalogue.LITE_TASKS:
        raise DeasError(
            f"task '{task}' is none of those that lite kitchens are made for: use some of "
            f"{list(catalogue.LITE_TASKS)}, or --assets=robocasa"
        )
    name = lite_split(split)
    parts = [part for each, part in catalogue.LITE_SPLITS.items()
             if each == name or (name == "all" and each != "varied")]  # fmt: skip
    of_split = dict.fromkeys(
        (la, st) for part in parts for la in part["layouts"] for st in part["styles"]
    )  # in their order; varied kitchens have thousands
    all_layouts = list(dict.fromkeys(layout for layout, _ in of_split))
    all_styles = list(dict.fromkeys(style for _, style in of_split))
    chosen = [_chosen("layout", layouts, all_layouts, name)]
    chosen += [_chosen("style", styles, all_styles, name)]
    pairs = [
        (layout, style)
        for layout in chosen[0]
        for style in chosen[1]
        if (layout, style) in of_split or layout not in all_layouts or style not in all_styles
    ]
    for layout, style in pairs:
        if layout in all_layouts and style in all_styles:
            continue  # ours, which tests check
        described = catalogue.layout(layout)
        check_layout(described, layout)
        check_style(catalogue.style(style), described, style)
    if not pairs:
        raise DeasError(
            f"no lite kitchen of split '{split}' has {list(layouts)} and {list(styles)}"
        )
    return pairs


def _chosen(what: str, wanted: Sequence[int | str], known: list[str], split: str) -> list[str]:
    for name in map(str, wanted):
        if name not in known and not name.endswith((".yaml", ".yml")):
            raise DeasError(
                f"{what} '{name}' is no lite {what} of split '{split}': use some of {known}, or a "
                "YAML file of your own"
            )
    return [str(name) for name in wanted] or known
