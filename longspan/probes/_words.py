"""Words, numbers and strings that training and evaluation draw from without ever sharing one."""

import hashlib
import random
from functools import cache
from typing import Literal

from longspan.utils.errors import DataError

Split = Literal["train", "evaluate"]

ADJECTIVES = tuple(
    """
    able active agile alert amber ample ancient annual arctic ashen awake basic bitter blank blond blue blunt bold
    bottom brave brief bright brisk broad broken bronze brown busy calm candid careful central certain cheap cheerful
    chief chilly civic civil classic clean clear clever close cloudy coarse coastal cold common complex cool cordial
    correct costly cozy crimson crisp crooked cubic curious curly daily damp dapper daring dark dear decent deep dense
    direct distant divine domestic double dry dull dusty eager early earnest eastern easy elder elegant empty endless
    entire equal exact external extra faded faint fair faithful famous fancy fast federal fertile final fine firm
    first flat fluent foreign formal forward fragile frank free fresh friendly frosty frozen full gallant general
    gentle giant glad global golden good graceful grand grateful gray great green handy happy hardy harsh hasty heavy
    hidden high hollow holy honest hot huge humble icy ideal idle infinite inland inner ivory jolly joyful junior keen
    kind large late lavish lazy lean legal level light likely little lively local lofty lonely long loose loud lovely
    loyal lucky lunar magic major marble marine mature medium mellow merry mild minor modern modest moist musical mute
    naked narrow national native neat neutral new nimble noble noisy normal northern novel obvious odd official old
    open orange outer oval pale patient perfect plain pleasant polite poor popular precious pretty prime private
    prompt proper proud public pure purple quick quiet rapid rare raw ready real recent red regal regular remote rich
    right rigid ripe robust rosy rough round royal rural rustic sacred safe salty scarlet secret senior serene severe
    shallow sharp shiny short shy silent silver simple sincere single slim slow small smooth snowy social soft solar
    solemn solid sonic southern spare special steady steep sterile stiff stormy straight strange strict strong sturdy
    subtle sudden sunny superb supreme sweet swift tall tame tender thick thin thorough tidy tiny tired total tough
    tranquil true twin unique upper urban useful usual vacant vague valid vast velvet vivid warm wary weary western
    wet white whole wide wild windy wise witty wooden worthy yellow young zealous
    """.split()  # noqa: SIM905 - a list of this many quoted words is no easier to read
)

NOUNS = tuple(
    """
    acorn actor airport alley anchor animal ankle apple apron arch arena arm army arrow artist attic aunt author
    autumn axe baker balcony ball banner barley barn barrel basin basket beach beacon beam bean bear beard beaver bed
    bee bell belt bench berry bird biscuit blade blanket blossom boat bone book boot border bottle boulder bow bowl
    box branch bread breeze brick bridge broom brother brush bucket bullet butter button cabin cable cactus cake camel
    camera camp canal candle canoe canvas canyon captain card cargo carpet carrot cart castle cat cattle cave cedar
    cellar chain chair chalk chapel cheese cherry chest chicken chimney church circle city clay cliff clock cloth
    cloud clover coach coal coast coat coffee coin collar column comet compass copper coral cord corn corner cottage
    cotton couch country court cow cradle crane creek crew cricket crop cross crow crown crystal cup curtain cushion
    dairy dance daughter dawn deer desert desk diamond dinner dish doctor dog doll dolphin donkey door dragon drawer
    dream dress drum duck dust eagle ear earth egg elbow elephant elm engine evening eye fabric falcon family farm
    farmer feast feather fence fern ferry fiddle field finger fire fish flag flame flask flock floor flower flute foam
    fog forest fork fort fountain fox frame friend frog fruit furnace garden garlic gate ghost giraffe glacier glass
    globe glove goat goose grain grape grass guitar hall hammer hammock hand harbor harp harvest hat hawk hazel heart
    hedge helmet herb hero heron hill hinge honey hook horizon horn horse hotel house hunter ice inn iron island ivy
    jacket jar jewel journal journey judge jungle kettle key king kitchen kite kitten knee knife knight knot ladder
    lady lake lamb lamp lantern lark lawn lawyer leaf leather lemon letter library lily lion lizard lobster log loom
    lumber lynx machine magnet mailbox manor map maple mare market mast meadow medal melon mill miner mirror monk moon
    moose morning moss moth mother motor mountain mouse museum mushroom napkin neck needle nest nurse oak oar oasis
    oat ocean office olive onion opera orchard orchid organ otter oven owl ox oyster paddle painter palace palm pan
    panel panther paper parade parcel parrot pasture path peach pear pearl pebble pen pencil pepper piano picture pier
    pigeon pillow pilot pine pipe pirate plane planet plant plate plaza plow plum pocket poem poet pond pony poplar
    porch port potato powder prairie prince prison puppet puzzle pyramid quarry queen quill rabbit raft railway rain
    raven razor reef ribbon rice ridge ring river road robin rock rocket roof room root rope rose rudder rug saddle
    sail sailor salad salmon salt sand sandal satchel scale scarf school sea seal seed shadow shark sheep shell
    shelter shepherd shield ship shirt shoe shop shore shovel silk singer sister skirt sky sled sleeve slipper snail
    snake snow soap soldier song soup spark sparrow spear spider spoon spring spruce square squirrel stable stage
    stair star station statue steamer stone stool storm stove straw stream street student sugar suit summer sun
    swallow swan sword table tailor target teacher temple tent theater thief thorn thread throne thumb tiger timber
    toad tomato tongue tool torch tower town trail train tray tree trumpet trunk tulip tunnel turkey turtle uncle
    valley vase vessel village vine violin visitor voyage wagon wall walnut walrus water wave weaver well whale wharf
    wheat wheel whistle widow willow window wine wing winter wolf wood wool worker yard zebra
    """.split()  # noqa: SIM905
)


def split_of(text: str) -> Split:
    """The side that a word, number or string belongs to, by the parity of a hash: half go to each."""
    return "evaluate" if hashlib.sha256(text.encode()).digest()[0] % 2 else "train"


@cache
def _vocabulary(split: Split) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Adjectives and nouns of one side."""
    adjectives, nouns = (tuple(w for w in words if split_of(w) == split) for words in (ADJECTIVES, NOUNS))
    return adjectives, nouns


def names(count: int, *, rng: random.Random, split: Split) -> list[str]:
    """Distinct names `adjective-noun` whose two words both belong to `split`.

    Raises `DataError` when there are fewer names than `count`.
    """
    adjectives, nouns = _vocabulary(split)
    _refuse_more_than(len(adjectives) * len(nouns), count, "names")
    places = rng.sample(range(len(adjectives) * len(nouns)), count)
    return [f"{adjectives[place // len(nouns)]}-{nouns[place % len(nouns)]}" for place in places]


def strings(count: int, *, alphabet: str, length: int, rng: random.Random, split: Split) -> list[str]:
    """Distinct random strings of `length` letters of `alphabet` that belong to `split`.

    Raises `DataError` when `count` is more than a quarter of all strings (half belong to the other side, and the
    draw must end soon).
    """
    _refuse_more_than(len(alphabet) ** length // 4, count, f"strings of {length} letters")
    drawn: dict[str, None] = {}  # keeps the order of drawing
    while len(drawn) < count:
        text = "".join(rng.choices(alphabet, k=length))
        if split_of(text) == split:
            drawn[text] = None
    return list(drawn)


def _refuse_more_than(have: int, count: int, what: str) -> None:
    if count > have:
        raise DataError(
            "probe.too-many-items",
            f"{count} different {what} are asked of a probe that has {have}",
            fix="ask for fewer items, or give the probe longer strings",
        )


SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")


def coined(count: int, *, syllables: int, rng: random.Random, split: Split) -> list[str]:
    """Distinct invented words such as `Lomarivu`, capitalised, that belong to `split`. Raises as `strings` does."""
    _refuse_more_than(len(SYLLABLES) ** syllables // 4, count, f"invented words of {syllables} syllables")
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        text = "".join(rng.choices(SYLLABLES, k=syllables)).capitalize()
        if split_of(text) == split:
            drawn[text] = None
    return list(drawn)


def vocabulary(split: Split) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Adjectives and nouns of one side."""
    return _vocabulary(split)
