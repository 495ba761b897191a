"""COLMAP's steps through pycolmap, on the CPU, silent, the same under a seed: features, matches, mapping.

One folder holds the pictures (0000.png, ...) and the database of one run. Pixels are those of the pictures.
"""

import math
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from tqdm import tqdm

FEATURE_SIDES = (512, 768)  # px: pictures are brought between these before features are sought
MOST_FEATURES = 4096
OVERLAP = 10  # a frame of a video is matched with so many that follow, and with some much later
PAIRS_AT_ONCE = 20
MOST_MODELS = 2
LEAST_INLIERS = 15
FLAT = {
    pycolmap.TwoViewGeometryConfiguration.PLANAR,
    pycolmap.TwoViewGeometryConfiguration.PANORAMIC,
    pycolmap.TwoViewGeometryConfiguration.PLANAR_OR_PANORAMIC,
    pycolmap.TwoViewGeometryConfiguration.WATERMARK,
}

_handler = signal.getsignal(signal.SIGTERM)
if _handler is not None and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, _handler)  # pycolmap's import put a stack trace in its place
pycolmap.logging.minloglevel = 3  # FATAL: COLMAP logs to stderr otherwise, and what matters is returned


def video_pairs(frames: int) -> list[tuple[int, int]]:
    """Each frame with the next ones, and with those 16, 32, ... later, which close loops."""
    later = [*range(1, OVERLAP + 1), *(2**k for k in range(4, 12))]
    return [(a, a + step) for a in range(frames) for step in later if a + step < frames]


def all_pairs(frames: int) -> list[tuple[int, int]]:
    """Each with each."""
    return [(a, b) for a in range(frames) for b in range(a + 1, frames)]


def feature_scale(side: int) -> float:
    """How pictures with such a longer side are scaled before features are sought."""
    return min(max(FEATURE_SIDES[0] / side, 1.0), FEATURE_SIDES[1] / side)


def write_pictures(
    folder: Path,
    frames: UInt8[np.ndarray, "n h w 3"],
    masks: Bool[np.ndarray, "n h w"] | None,
    height: int,
    width: int,
) -> None:
    """Frames, and what masks leave of them, as files of the given size."""
    for k, frame in enumerate(frames):
        picture = Image.fromarray(frame)
        if picture.size != (width, height):
            shrunk = width < picture.width
            picture = picture.resize((width, height), _resampling(shrunk))
        picture.save(folder / _name(k), compress_level=1)
        if masks is not None:
            kept = Image.fromarray(np.where(masks[k], 0, 255).astype(np.uint8))
            (folder / "masks").mkdir(exist_ok=True)
            kept.resize((width, height), Image.Resampling.NEAREST).save(folder / "masks" / f"{_name(k)}.png")


def find_features(folder: Path, focal_px: float, known: bool, progress: bool = False) -> None:
    """SIFT features of all pictures (Lowe 2004), seen by one shared camera, whose lens is straight so far."""
    names = sorted(path.name for path in folder.glob("*.png"))
    with Image.open(folder / names[0]) as picture:
        width, height = picture.size
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", focal_px, width, height)
    reading = pycolmap.ImageReaderOptions()
    reading.camera_model, reading.camera_params = camera.model_name, camera.params_to_string()
    if (folder / "masks").is_dir():
        reading.mask_path = folder / "masks"
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads, extraction.use_gpu = 1, False
    extraction.sift.max_num_features = MOST_FEATURES
    for name in tqdm(names, desc="features", disable=not progress):
        pycolmap.extract_features(
            _database(folder),
            folder,
            [name],
            pycolmap.CameraMode.SINGLE,
            reading,
            extraction,
            pycolmap.Device.cpu,
        )
        reading.existing_camera_id = 1
    set_focal(folder, focal_px, known)


def set_focal(folder: Path, focal_px: float, known: bool, k: float = 0.0) -> None:
    """The focal length that verification and mapping start from, whether they may rely on it, and the lens's
    coefficient."""
    with pycolmap.Database.open(_database(folder)) as database:
        camera = database.read_camera(1)
        camera.params = [focal_px, *camera.params[1:3], k]
        camera.has_prior_focal_length = known
        database.update_camera(camera)


def match(folder: Path, pairs: Sequence[tuple[int, int]], seed: int, progress: bool = False) -> None:
    """Matches pairs of pictures and keeps what a two-view geometry explains."""
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads, matching.use_gpu = 1, False
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = seed
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = folder / "pairs.txt"
    with tqdm(total=len(pairs), desc="matches", disable=not progress) as bar:
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            block = pairs[start : start + PAIRS_AT_ONCE]
            (folder / "pairs.txt").write_text("\n".join(f"{_name(a)} {_name(b)}" for a, b in block))
            pycolmap.match_image_pairs(
                _database(folder), matching, pairing, verification, pycolmap.Device.cpu
            )
            bar.update(len(block))


class OutOfTime(RuntimeError):
    """Mapping did not end in time."""


def map_scene(
    folder: Path, free_focal: bool, seed: int, progress: bool = False, deadline: float = math.inf
) -> pycolmap.Reconstruction | None:
    """Cameras and points from verified matches: the model with most pictures; None where there is none.

    One thread, or the result would not repeat. For the same reason what is half done is no result.

    Args:
        deadline: the `time.monotonic()` by which it must be done.

    Raises:
        OutOfTime: it is not; it ends about then, between two of its steps.
    """
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed = 1, seed
    options.extract_colors = False
    options.max_num_models = MOST_MODELS
    options.min_model_size = 3
    options.mapper.init_max_forward_motion = 1.0  # walking ahead is a way to film, too
    options.mapper.abs_pose_min_num_inliers = LEAST_INLIERS
    options.init_num_trials = 30  # a scene's first pair is among the first; the rest is hopeless and slow
    options.ba_refine_focal_length = options.mapper.abs_pose_refine_focal_length = free_focal
    options.ba_refine_extra_params = options.mapper.abs_pose_refine_extra_params = False
    if deadline < math.inf:
        options.max_runtime_seconds = max(math.ceil(deadline - time.monotonic()), 1)
    pycolmap.set_random_seed(seed)
    (folder / "models").mkdir(exist_ok=True)
    with tqdm(desc="cameras", disable=not progress) as bar:

        def count_one() -> None:
            bar.update()

        models = pycolmap.incremental_mapping(
            _database(folder),
            folder,
            folder / "models",
            options,
            next_image_callback=count_one,
        )
    if time.monotonic() > deadline:
        raise OutOfTime
    return max(models.values(), key=lambda model: model.num_reg_images(), default=None)


def with_lens(model: pycolmap.Reconstruction, free_focal: bool) -> pycolmap.Reconstruction:
    """The model with the lens's coefficient fitted along with all else.

    Not while views are added: the first few would decide it, and wrongly, so that no other view registers.
    """
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length, options.refine_extra_params = free_focal, True
    options.print_summary = False
    options.ceres.solver_options.num_threads = 1
    fitted, views = pycolmap.Reconstruction(model), pycolmap.BundleAdjustmentConfig()
    for image in fitted.reg_image_ids():
        views.add_image(image)
    views.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(options, views, fitted).solve()
    fitted.update_point_3d_errors()
    return fitted


def _database(folder: Path) -> Path:
    return folder / "database.db"


def _name(frame: int) -> str:
    return f"{frame:04d}.png"


def _resampling(shrunk: bool) -> Image.Resampling:
    return Image.Resampling.BOX if shrunk else Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Matches:
    """What the features of the frames have in common.

    Attributes:
        features: in the median frame.
        inliers: verified matches of the median pair of neighbouring frames.
        shift: of the matched features between the pair of frames where it is largest (median over the
            features), over the picture's width; NaN where no pair matches.
        flat: share of the pairs that one homography explains, or an overlay that never moves.
        features_in_pairs: per frame, how many features match in at least two other frames.
    """

    features: int
    inliers: float
    shift: float
    flat: float
    features_in_pairs: list[int]


@dataclass(frozen=True)
class Pair:
    """Verified matches of two frames: indices of their features, where these are, and whether a homography
    explains them."""

    frames: tuple[int, int]
    features: Int[np.ndarray, "2 m"]
    places: Float[np.ndarray, "2 m 2"]
    flat: bool


def read_pairs(folder: Path) -> tuple[list[Pair], list[int]]:
    """All pairs with enough verified matches, and the number of features of each frame."""
    with pycolmap.Database.open(_database(folder)) as database:
        frame = {image.image_id: frame_of(image.name) for image in database.read_all_images()}
        places = {k: database.read_keypoints(image)[:, :2] for image, k in frame.items()}
        pair_ids, geometries = database.read_two_view_geometries()
    pairs = []
    for pair_id, geometry in zip(pair_ids, geometries, strict=True):
        matches = geometry.inlier_matches.astype(int).reshape(-1, 2).T
        if matches.shape[1] >= LEAST_INLIERS:
            a, b = (frame[image] for image in pycolmap.pair_id_to_image_pair(pair_id))
            seen = np.stack([places[a][matches[0]], places[b][matches[1]]])
            pairs.append(Pair((a, b), matches, seen, geometry.config in FLAT))
    return pairs, [len(places[k]) for k in sorted(places)]


def sum_up(pairs: Sequence[Pair], features: Sequence[int], width: int) -> Matches:
    """What the pairs of frames with so many features and pixels across have in common."""
    partners = [np.zeros(count, int) for count in features]
    near, shifts = np.zeros(len(features) - 1), []
    for pair in pairs:
        for frame, matched in zip(pair.frames, pair.features, strict=True):
            partners[frame][matched] += 1
        shifts.append(np.median(np.linalg.norm(pair.places[0] - pair.places[1], axis=1)) / width)
        if pair.frames[1] == pair.frames[0] + 1:
            near[pair.frames[0]] = pair.features.shape[1]
    return Matches(
        features=int(np.median(features)),
        inliers=float(np.median(near)),
        shift=float(max(shifts, default=np.nan)),
        flat=float(np.mean([pair.flat for pair in pairs])) if pairs else 0.0,
        features_in_pairs=[int((seen >= 2).sum()) for seen in partners],
    )


def frame_of(name: str) -> int:
    """The index of a frame by the name of its picture."""
    return int(Path(name).stem)
