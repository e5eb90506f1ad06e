"""Latent association: question and line share only what one knows of the world. After the idea of NoLiMa."""

import random
from functools import cache
from typing import Literal

from longspan.probes._words import Split, coined, split_of
from longspan.probes.base import Item, PlantedProbe
from longspan.utils.errors import DataError

# Own list: a sight or a river, and the country that it stands for.
SIGHTS = tuple(
    tuple(entry.strip().split(" / "))
    for entry in """
    the Eiffel Tower / France; the Brandenburg Gate / Germany; the Colosseum / Italy; the Acropolis / Greece;
    the Alhambra / Spain; the Kremlin / Russia; the Great Wall / China; Mount Fuji / Japan; the Taj Mahal / India;
    the pyramids of Giza / Egypt; Machu Picchu / Peru; Table Mountain / South Africa; Ayers Rock / Australia;
    the Grand Canyon / America; Niagara Falls / Canada; Stonehenge / England; Loch Ness / Scotland;
    the Matterhorn / Switzerland; the Little Mermaid statue / Denmark; the fjord of Geiranger / Norway;
    the Hagia Sophia / Turkey; Petra / Jordan; Angkor Wat / Cambodia; the temples of Bagan / Myanmar;
    Kilimanjaro / Tanzania; the port of Casablanca / Morocco; the ruins of Carthage / Tunisia; Chichen Itza / Mexico;
    the Panama Canal / Panama; Sugarloaf Mountain / Brazil; the Perito Moreno glacier / Argentina;
    the statues of Easter Island / Chile; the Galapagos / Ecuador; the Blue Mosque of Isfahan / Iran;
    the Charles Bridge / Bohemia; the Wawel castle / Poland; the baths of Budapest / Hungary;
    the castle of Bran / Romania; the tower of Belem / Portugal; the Grand Place of Brussels / Belgium;
    the windmills of Kinderdijk / Holland; the Cliffs of Moher / Ireland; the geysers of Haukadalur / Iceland;
    the Schoenbrunn palace / Austria; the walls of Dubrovnik / Croatia; Lake Titicaca / Bolivia; Halong Bay / Vietnam;
    the temple of Borobudur / Indonesia; the Petronas Towers / Malaysia; the beaches of Phuket / Thailand;
    Sigiriya / Ceylon; Mount Everest / Nepal; the Registan of Samarkand / Uzbekistan; Baalbek / Lebanon;
    the Western Wall / Israel; Lalibela / Ethiopia; the Masai Mara / Kenya; Timbuktu / Mali
    """.replace("\n", " ").split(";")
)
WAYS = (
    "{name} grew up within sight of {sight}.",
    "Every morning {name} walks past {sight}.",
    "From the window of {name} one sees {sight}.",
)


@cache
def _sights(split: Split) -> tuple[tuple[str, ...], ...]:
    return tuple(entry for entry in SIGHTS if split_of(entry[1]) == split)


class Latent(PlantedProbe):
    """Lines such as `Every morning Rovamilu walks past the Colosseum.`; asked is who lives in Italy."""

    kind: Literal["latent"] = "latent"

    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` people in different countries."""
        have = _sights(split)
        if count > len(have):
            raise DataError(
                "probe.too-many-items",
                f"{count} different countries are asked of a probe that has {len(have)}",
                fix="ask for fewer items",
            )
        people = coined(count, syllables=4, rng=rng, split=split)
        return [
            Item(
                line=rng.choice(WAYS).format(name=name, sight=sight),
                question=f"\nThe person in this text who lives in {country} is called",
                answer=f" {name}",
            )
            for name, (sight, country) in zip(people, rng.sample(have, count), strict=True)
        ]
