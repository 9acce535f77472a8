"""Make the sets people quote from the trees their authors publish, a command per set."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Final

from facerec.cli.options import DATA, FORCE, IMAGES, WORKERS, face_maker, option, workers

# Of each set its full name, what its tree looks like, and what is made.
SETS: Final = {
    "agedb": (
        "AgeDB-30",
        "ROOT holds 03_Protocol_Images/ and 04_FINAL_protocol_30_years.mat. OUT gets agedb_30.bin.",
    ),
    "calfw": ("Cross-Age LFW", "ROOT holds 'aligned images/' and pairs_CALFW.txt. OUT gets calfw.bin."),
    "cfp": (
        "Celebrities in Frontal-Profile",
        "ROOT holds Data/Images/NNN/{frontal,profile}/NN.jpg, Protocol/Pair_list_{F,P}.txt and "
        "Protocol/Split/{FF,FP}/NN/{same,diff}.txt. OUT gets cfp_fp.bin and cfp_ff.bin.",
    ),
    "cplfw": ("Cross-Pose LFW", "ROOT holds 'aligned images/' and pairs_CPLFW.txt. OUT gets cplfw.bin."),
    "rfw": (
        "Racial Faces in the Wild",
        "ROOT holds data/GROUP/m.NAME/m.NAME_NNNN.jpg and txts/GROUP/GROUP_pairs.txt for African, Asian, "
        "Caucasian and Indian. OUT gets rfw_african.bin and three more.",
    ),
    "tinyface": (
        "TinyFace, for identification",
        "ROOT (Testing_Set) holds Gallery_Match/, Probe/, Gallery_Distractor/, "
        "gallery_match_img_ID_pairs.mat and probe_img_ID_pairs.mat. OUT gets folders gallery, probes and "
        "distractors for `facerec-eval eval=identification`.",
    ),
    "xqlfw": (
        "Cross-Quality LFW",
        "ROOT holds xqlfw_aligned_112/NAME/NAME_NNNN.jpg (else lfw_original_imgs_min_qual0.85variant11/) and "
        "xqlfw_pairs.txt. OUT gets xqlfw.bin.",
    ),
}


def make(options: Namespace) -> None:
    from facerec.making.published_sets import make_published
    from facerec.packs.verification import load_verification

    made = make_published(
        options.command,
        options.root,
        options.out,
        face_maker(options),
        images=options.images,
        force=options.force,
        workers=workers(options),
    )
    for path in made:
        print(load_verification(path).describe() if path.suffix == ".bin" else path)


for _name, (_title, _tree) in SETS.items():
    DATA.command(
        _name,
        option("root", "the folder of the set as its authors publish it", type=Path),
        option("out", "the folder to write to", type=Path),
        option("--images", "where the images are, in the same tree, if not in ROOT", type=Path),
        WORKERS,
        FORCE,
        *IMAGES,
        help=f"""Make the test set {_title}.

{_tree} Pairs keep the published order and folds.

example:
  facerec-data {_name} ROOT data/sets --align --no-face crop
  facerec-data {_name} ROOT data/sets --images ALIGNED --keep
""",
    )(make)
