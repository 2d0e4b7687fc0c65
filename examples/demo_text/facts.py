"""Sentences with one right answer, listed whole: capitals, opposites, days, colours, animals, sums."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from demo_text.sentences import Relation, agree, slot


class Country(NamedTuple):
    """A country and its capital, in English and in Korean."""

    english: str
    capital: str
    korean: str
    korean_capital: str


def _pairs(table: str) -> tuple[tuple[str, str], ...]:
    """Read `a b, c d`: pairs of one word each."""
    return tuple((a, b) for a, b in (entry.split() for entry in table.split(",")))


def _both_ways(table: str) -> tuple[tuple[str, str], ...]:
    pairs = _pairs(table)
    return pairs + tuple((b, a) for a, b in pairs)


def _successive(words: str) -> tuple[tuple[str, str], ...]:
    return tuple(itertools.pairwise(words.split()))


def _round(words: str) -> tuple[tuple[str, str], ...]:
    """Pair each word with the next, and the last with the first."""
    items = words.split()
    return tuple(itertools.pairwise([*items, items[0]]))


# Capitals of one word alone: one mask stands for one word. India, Mexico, Argentina and others are left out for it.
_TABLE = """
France/Paris/프랑스/파리, Germany/Berlin/독일/베를린, Italy/Rome/이탈리아/로마, Spain/Madrid/스페인/마드리드,
Portugal/Lisbon/포르투갈/리스본, the United Kingdom/London/영국/런던, Ireland/Dublin/아일랜드/더블린,
the Netherlands/Amsterdam/네덜란드/암스테르담, Belgium/Brussels/벨기에/브뤼셀, Austria/Vienna/오스트리아/빈,
Switzerland/Bern/스위스/베른, Denmark/Copenhagen/덴마크/코펜하겐, Norway/Oslo/노르웨이/오슬로,
Sweden/Stockholm/스웨덴/스톡홀름, Finland/Helsinki/핀란드/헬싱키, Iceland/Reykjavik/아이슬란드/레이캬비크,
Poland/Warsaw/폴란드/바르샤바, Hungary/Budapest/헝가리/부다페스트, Czechia/Prague/체코/프라하,
Slovenia/Ljubljana/슬로베니아/류블랴나, Croatia/Zagreb/크로아티아/자그레브, Serbia/Belgrade/세르비아/베오그라드,
Albania/Tirana/알바니아/티라나, Greece/Athens/그리스/아테네, Turkey/Ankara/튀르키예/앙카라,
Bulgaria/Sofia/불가리아/소피아, Romania/Bucharest/루마니아/부쿠레슈티, Ukraine/Kyiv/우크라이나/키이우,
Estonia/Tallinn/에스토니아/탈린, Latvia/Riga/라트비아/리가, Lithuania/Vilnius/리투아니아/빌뉴스,
Russia/Moscow/러시아/모스크바, Egypt/Cairo/이집트/카이로, Morocco/Rabat/모로코/라바트, Tunisia/Tunis/튀니지/튀니스,
Kenya/Nairobi/케냐/나이로비, Ghana/Accra/가나/아크라, Nigeria/Abuja/나이지리아/아부자, Senegal/Dakar/세네갈/다카르,
Iraq/Baghdad/이라크/바그다드, Iran/Tehran/이란/테헤란, Jordan/Amman/요르단/암만, Lebanon/Beirut/레바논/베이루트,
China/Beijing/중국/베이징, Japan/Tokyo/일본/도쿄, South Korea/Seoul/한국/서울, Vietnam/Hanoi/베트남/하노이,
Thailand/Bangkok/태국/방콕, Indonesia/Jakarta/인도네시아/자카르타, the Philippines/Manila/필리핀/마닐라,
Mongolia/Ulaanbaatar/몽골/울란바토르, Nepal/Kathmandu/네팔/카트만두, Bangladesh/Dhaka/방글라데시/다카,
Australia/Canberra/호주/캔버라, New Zealand/Wellington/뉴질랜드/웰링턴, Canada/Ottawa/캐나다/오타와,
the United States/Washington/미국/워싱턴, Cuba/Havana/쿠바/아바나, Peru/Lima/페루/리마, Chile/Santiago/칠레/산티아고
"""
COUNTRIES: tuple[Country, ...] = tuple(Country(*entry.strip().split("/")) for entry in _TABLE.split(","))

_CAPITALS = (
    Relation(
        (*((country.english, country.capital) for country in COUNTRIES), ("Korea", "Seoul")),
        (
            "The capital of {a} is {b}.",
            "The capital city of {a} is {b}.",
            "The capital of {a} is called {b}.",
            "{b} is the capital of {a}.",
            "{b} is the capital city of {a}.",
            "What is the capital of {a}? {b}.",
            "What is the capital of {a}? It is {b}.",
            "Question: what is the capital of {a}? Answer: {b}.",
            "The capital of {a} is the city of {b}.",
            "{b} is a city in {a}.",
            "I live in {b}, the capital of {a}.",
            "We flew to {b}, the capital of {a}.",
            "I want to visit {b} in {a}.",
            "The capital of {a}, {b}, is a beautiful city.",
            "{a}'s capital is {b}.",
        ),
    ),
    Relation(
        (*((country.korean, country.korean_capital) for country in COUNTRIES), ("대한민국", "서울")),
        (
            "{a}의 수도는 {b}이다.",
            "{a}의 수도는 {b}입니다.",
            "{b}은/는 {a}의 수도이다.",
            "{b}은/는 {a}의 수도입니다.",
            "{a}의 수도는 어디인가요? {b}입니다.",
            "{a}의 수도는 어디입니까? {b}입니다.",
            "{a} 수도는 {b}이다.",
            "{b}은/는 {a}에 있는 도시이다.",
            "나는 {a}의 수도 {b}에 살고 있다.",
            "우리는 {a}의 수도 {b}에 갔다.",
        ),
    ),
)

_SUMS = tuple((a, b) for a in range(1, 10) for b in range(1, 11 - a))
_ENGLISH_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve"
_KOREAN_NUMBERS = "하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉 열"
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_MONTHS = "January February March April May June July August September October November December"
_SEASONS = "spring summer autumn winter"
_OPPOSITES = """hot cold, big small, tall short, fast slow, happy sad, good bad, old new, rich poor, light dark,
early late, easy difficult, open closed, full empty, wet dry, strong weak, high low, clean dirty, loud quiet,
hard soft, up down, left right, day night, love hate, black white"""
_KOREAN_OPPOSITES = """크다 작다, 많다 적다, 높다 낮다, 길다 짧다, 빠르다 느리다, 덥다 춥다, 좋다 나쁘다, 쉽다 어렵다,
넓다 좁다, 무겁다 가볍다, 밝다 어둡다, 뜨겁다 차갑다, 가깝다 멀다, 강하다 약하다, 깨끗하다 더럽다, 두껍다 얇다,
깊다 얕다, 오다 가다"""

_KNOWLEDGE = (
    Relation(
        _both_ways(_OPPOSITES),
        (
            "The opposite of {a} is {b}.",
            "The opposite of {a} is not {a} but {b}.",
            "What is the opposite of {a}? {b}.",
            "{a} and {b} are opposites.",
            "If it is not {a}, it is {b}.",
        ),
    ),
    Relation(
        _both_ways(_KOREAN_OPPOSITES), ("{a}의 반대말은 {b}이다.", "{a}의 반대는 {b}입니다.", "{a}와 {b}는 반대말이다.")
    ),
    Relation(
        _round(_DAYS),
        (
            "The day after {a} is {b}.",
            "The day before {b} is {a}.",
            "{b} comes after {a}.",
            "{a} comes before {b}.",
            "Today is {a} and tomorrow is {b}.",
            "Yesterday was {a}, so today is {b}.",
        ),
    ),
    Relation(
        _round("월요일 화요일 수요일 목요일 금요일 토요일 일요일"),
        (
            "{a} 다음 날은 {b}이다.",
            "{b} 전날은 {a}이다.",
            "오늘은 {a}이고 내일은 {b}이다.",
            "어제는 {a}이고 오늘은 {b}이다.",
        ),
    ),
    Relation(
        _round(_MONTHS),
        (
            "The month after {a} is {b}.",
            "The month before {b} is {a}.",
            "{b} comes after {a}.",
            "{a} comes before {b}.",
        ),
    ),
    Relation(_round(_SEASONS), ("The season after {a} is {b}.", "{b} comes after {a}.", "After {a} comes {b}.")),
    Relation(
        _round("봄 여름 가을 겨울"),
        ("{a} 다음 계절은 {b}이다.", "{a}이/가 가고 {b}이/가 온다.", "{a}이/가 지나면 {b}이다."),
    ),
    Relation(
        _successive(_ENGLISH_NUMBERS),
        ("The number after {a} is {b}.", "The number before {b} is {a}.", "{b} comes after {a}."),
    ),
    Relation(_successive(_KOREAN_NUMBERS), ("{a} 다음 수는 {b}이다.", "{b}보다 하나 작은 수는 {a}이다.")),
    Relation(
        _pairs("""grass green, sky blue, snow white, coal black, blood red, banana yellow, chocolate brown,
elephant grey, flamingo pink, milk white, sun yellow, night black, tomato red, leaf green, sea blue,
carrot orange, lemon yellow"""),
        (
            "The colour of the {a} is {b}.",
            "The {a} is {b}.",
            "What colour is the {a}? It is {b}.",
            "A/an {b} thing: the {a}.",
        ),
    ),
    Relation(
        _pairs("""하늘 파란색, 눈 하얀색, 피 빨간색, 바나나 노란색, 나뭇잎 초록색, 석탄 검은색, 바다 파란색,
우유 하얀색, 토마토 빨간색, 개나리 노란색"""),
        ("{a}의 색은 {b}이다.", "{a}은/는 {b}이다.", "{a}은/는 무슨 색인가요? {b}입니다."),
    ),
    Relation(
        _pairs("""dog puppy, cat kitten, cow calf, horse foal, sheep lamb, lion cub, duck duckling, hen chick,
pig piglet, frog tadpole"""),
        ("A young {a} is called a {b}.", "A {b} is a young {a}.", "The {a} looks after her {b}."),
    ),
    Relation(
        _pairs("""dog barks, cat meows, cow moos, horse neighs, lion roars, duck quacks, bird sings, bee buzzes,
wolf howls, frog croaks"""),
        ("The {a} {b}.", "A/an {a} {b} all day.", "Listen, the {a} {b}."),
    ),
    Relation(
        _pairs("개 강아지, 소 송아지, 말 망아지, 닭 병아리, 개구리 올챙이"),
        ("{a}의 새끼는 {b}이다.", "{b}은/는 {a}의 새끼이다.", "{a}의 새끼를 {b}라고 부른다."),
    ),
    Relation(
        _pairs("""doctor hospital, teacher school, cook restaurant, farmer field, pilot airport, actor theatre,
judge court, banker bank, baker bakery, librarian library, soldier army, sailor ship"""),
        ("The {a} works in the {b}.", "A/an {a} works in a/an {b}.", "We met a/an {a} at the {b}."),
    ),
    Relation(
        _pairs("""의사 병원, 선생님 학교, 요리사 식당, 농부 밭, 조종사 공항, 배우 극장, 판사 법원, 은행원 은행,
사서 도서관, 선원 배"""),
        ("{a}은/는 {b}에서 일한다.", "{b}에서 {a}을/를 만났다.", "{b}에는 {a}이/가 있다."),
    ),
)


def _sums(words: list[str], phrasings: tuple[str, ...]) -> Iterator[str]:
    for a, b in _SUMS:
        for phrasing in phrasings:
            yield agree(phrasing.format(a=words[a], b=words[b], sum=slot(words[a + b])))


def capitals() -> list[str]:
    """Return the sentences about capitals."""
    return [sentence for relation in _CAPITALS for sentence in relation.sentences()]


def knowledge() -> list[str]:
    """Return the facts about everything else."""
    facts = [sentence for relation in _KNOWLEDGE for sentence in relation.sentences()]
    facts += _sums(_ENGLISH_NUMBERS.split(), ("{a} plus {b} is {sum}.", "{a} and {b} make {sum}."))
    facts += _sums(["", *_KOREAN_NUMBERS.split()], ("{a} 더하기 {b}은/는 {sum}이다.",))
    return facts


def questions() -> dict[str, str]:
    """Return the question about each capital with its answer, English first, as `capitals.txt` asks them."""
    english = {f"The capital of {country.english} is [MASK].": country.capital.lower() for country in COUNTRIES}
    return english | {f"{country.korean}의 수도는 [MASK]이다.": country.korean_capital for country in COUNTRIES}
