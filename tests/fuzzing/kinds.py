"""Kinds of lists: the package's reader, the plain one, and the first inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from facerec.evaluation.protocols import ijb, ytf
from facerec.evaluation.protocols.identification import read_leave_out
from facerec.loading.opening import open_images
from facerec.making import pair_lists
from facerec.packs import verification
from facerec.packs.index import read_index
from facerec.packs.pack import Listing, read_property
from tests.fuzzing.plain import (
    SAME,
    TEMPLATES,
    need,
    plain_csv,
    plain_faces,
    plain_idx,
    plain_leave_out,
    plain_lst,
    plain_names,
    plain_pairs,
    plain_pairs_txt,
    plain_paths,
    plain_people,
    plain_people_txt,
    plain_property,
    plain_scores,
    plain_subjects,
    plain_ytf,
)


def read_idx(path: Path) -> Any:
    index = read_index(path)
    rows = [list(row) for row in zip(index.keys.tolist(), index.offset_N.tolist(), strict=True)]
    assert [index.row(key) for key, _ in rows] == list(range(len(rows)))
    return rows


def read_template_pairs(path: Path) -> Any:
    first_N, second_N, same_N = ijb.read_template_pairs(path)
    return np.column_stack([first_N, second_N, same_N.astype(np.int64)]).tolist()


def read_pairs_txt(path: Path) -> Any:
    pairs, folds = pair_lists.read_pairs_txt(path)
    return [tuple(pair) for pair in pairs], folds


def read_people(path: Path) -> Any:
    names, fold_N = verification.read_identities(path, np.array(SAME))
    return None if names is None else names.tolist(), None if fold_N is None else np.bincount(fold_N).tolist()


def read_lst(path: Path) -> Any:
    listing = Listing(path)
    return {key: listing.name(key) for key in listing._key_N.tolist()}


def read_property_line(path: Path) -> Any:
    return need(read_property(path))


def read_paths(path: Path) -> Any:
    images = open_images(path)
    return [(images.name(row), images.label(row)) for row in range(len(images))]


def read_ytf(path: Path) -> Any:
    pairs = ytf.read_splits(path)
    rows = np.column_stack([pairs.split_N, pairs.first_N, pairs.second_N, pairs.issame_N.astype(np.int64)])
    return rows.tolist(), pairs.video_V


def read_faces(path: Path) -> Any:
    names, template_R, medium_R = ijb._read_faces(path)
    return list(zip(names, template_R.tolist(), medium_R.tolist(), strict=True))


def read_scores(path: Path) -> Any:
    number_of, landmarks_P52, score_P = ijb._read_scores(path)
    return {
        name: [*landmarks_P52[row].reshape(-1).tolist(), float(score_P[row])]
        for name, row in number_of.items()
    }


def read_subjects(path: Path) -> Any:
    row_T, subject_T = ijb.read_subjects(path, np.array(TEMPLATES))
    return dict(zip(np.array(TEMPLATES)[row_T].tolist(), subject_T.tolist(), strict=True))


KINDS: Final[dict[str, tuple[Callable[[Path], Any], Callable[[bytes], Any], list[bytes]]]] = {
    "idx": (
        read_idx,
        plain_idx,
        [b"0\t0\n1\t40\n2\t88\n3\t120\n", b"1\t\n114", b"7\t8\r\n 3 \t 9\n\n5 6", b"1\t\t2\n", b"\t1\t2"],
    ),
    "template_pairs": (read_template_pairs, plain_pairs, [b"1 3 1\n12 128 0\n5000 1 1\n", b"1\t2\t0"]),
    "pairs_txt": (
        read_pairs_txt,
        plain_pairs_txt,
        [b"2\t1\nAnn\t1\t2\nAnn\t1\tBob\t3\nCleo\t1\t4\nCleo\t2\tDan\t1\n", b"1\nAnn 1 2\nAnn 1 Bob 2"],
    ),
    "people_txt": (pair_lists.read_people_txt, plain_people_txt, [b"2\n2\nAnn\t1\nBob\t3\n1\nCleo\t2\n"]),
    "csv": (
        lambda path: [tuple(pair) for pair in pair_lists.read_csv(path)],
        plain_csv,
        [b'first,second,same\na/1.jpg,a/2.jpg,1\n"b/1,x.jpg",c/2.jpg,no\n'],
    ),
    "names": (pair_lists.read_names, plain_names, [b"Ann\t1\t2\nBob\n"]),
    "leave_out": (read_leave_out, plain_leave_out, [b"# noisy\na/1.jpg\n b/2.jpg \n", b"\xef"]),
    "people": (
        read_people,
        plain_people,
        [
            b"Ann\tAnn\nAnn\tBob\nBob\tBob\nC\tC\nC\tD\n",
            b"# 2 folds\nA\tA\nA\tB\nB\tB\nC\tC\nC\tD",
            b"# 5 folds",
        ],
    ),
    "lst": (read_lst, plain_lst, [b"1\t0\tann/1.jpg\n2\t0.0\tann/2.jpg\n9\t1\t2\tbob/x y.jpg\r\n"]),
    "property": (read_property_line, plain_property, [b"85742,112,112\n"]),
    "paths": (read_paths, plain_paths, [b"a/1.jpg\nb/2.jpg\tBob\n/c.png\n"]),
    "ytf": (
        read_ytf,
        plain_ytf,
        [
            b"split number, first name, second name, is same\n1, Ann/1, Ann/2, 1\n2, Ann/1, Bob/0, 0\n",
            b"1,a/\0,../x,0",
        ],
    ),
    "faces": (read_faces, plain_faces, [b"1.jpg 1 69544\n2.jpg 1 -1\n3.jpg 12 7\n"]),
    "scores": (
        read_scores,
        plain_scores,
        [
            b"1.jpg 1.5 2 3 4 5 6 7 8 9 10 0.99\n2.jpg 1 2 3 4 5 6 7 8 9 1e1 .5\n",
            b"1 1_0 2 3 4 5 6 7 8 9 1 1",
        ],
    ),
    "subjects": (
        read_subjects,
        plain_subjects,
        [b"TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,10,a.jpg\n1,10,b\n12,3,\n"],
    ),
}
