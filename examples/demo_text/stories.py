"""Sentences with many right answers, drawn at random: who goes where, what people eat, how a film was."""

import random
import re

from demo_text.sentences import agree, slot

_FIELD = re.compile(r"\{(\w+)\}")

# A field of a template is a key here. A word is drawn with a weight of one over its place in its list.
_WORDS: dict[str, tuple[str, ...]] = {
    field: tuple(words.split())
    for field, words in {
        "장소": "학교 시장 병원 도서관 공원 회사 바다 식당 극장 은행 우체국 공항 서점 교회 약국 박물관 카페 놀이공원",
        "사람": "친구 어머니 아버지 동생 형 누나 언니 오빠 할머니 할아버지 삼촌 이웃 아이",
        "음식": "밥 빵 김치 사과 국수 라면 비빔밥 불고기 떡 고기 생선 과자 수박 포도 딸기",
        "음료": "물 커피 우유 차 주스",
        "때": "아침 저녁 점심 오늘 내일 주말 밤",
        "요일": "월요일 화요일 수요일 목요일 금요일 토요일 일요일",
        "동물": "개 고양이 새 소 말 토끼 호랑이 곰 물고기",
        "물건": "책 옷 신발 가방 꽃 우산 모자 연필 사진",
        "말": "한국어 영어 수학 음악 역사 과학",
        "탈것": "버스 기차 지하철 자전거 비행기 택시 배",
        "날씨": "좋다 춥다 덥다 맑다 흐리다",
        "느낌": "재미있다 좋다 슬프다 지루하다 아름답다 나쁘다",
        "작품": "영화 책 노래 이야기 음악",
        "place": "school market hospital library park office beach restaurant cinema bank airport church museum",
        "person": "friend mother father brother sister uncle aunt neighbour child",
        "food": "bread rice soup apple fish cheese cake egg meat salad banana pizza",
        "drink": "water coffee tea milk juice",
        "time": "morning evening afternoon",
        "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "animal": "dog cat bird horse cow rabbit fish bear lion",
        "thing": "book coat hat bag flower umbrella letter phone picture",
        "subject": "English Korean music history science mathematics",
        "vehicle": "bus train bicycle car plane taxi ship",
        "weather": "sunny cold warm rainy windy cloudy",
        "praise": "great good wonderful funny beautiful excellent",
        "blame": "bad boring terrible slow awful sad",
        "work": "film book song story play",
        "kind": "language small new good large",
        "colour": "red blue green black white yellow brown",
    }.items()
}

#: Where one can go, in Korean.
KOREAN_PLACES: tuple[str, ...] = _WORDS["장소"]

_TEMPLATES: tuple[str, ...] = (
    "나는 {장소}에 간다.",
    "나는 {장소}에 갔다.",
    "나는 {때}에 {장소}에 간다.",
    "나는 {요일}에 {장소}에 간다.",
    "나는 {사람}과/와 함께 {장소}에 간다.",
    "우리는 {장소}에 간다.",
    "우리는 {탈것}을/를 타고 {장소}에 갔다.",
    "{사람}은/는 {장소}에 간다.",
    "{사람}은/는 {장소}에서 {사람}을/를 만났다.",
    "저는 {장소}에 갑니다.",
    "저는 {음식}을/를 좋아합니다.",
    "나는 {음식}을/를 먹는다.",
    "나는 {때}에 {음식}을/를 먹었다.",
    "{사람}은/는 {음식}을/를 먹고 {음료}을/를 마신다.",
    "나는 {음료}을/를 마신다.",
    "나는 {장소}에서 {물건}을/를 샀다.",
    "{사람}이/가 나에게 {물건}을/를 주었다.",
    "{사람}은/는 {말}을/를 가르친다.",
    "나는 {말}을/를 공부한다.",
    "오늘은 {요일}이다.",
    "오늘 날씨가 {날씨}.",
    "우리 집에는 {동물}이/가 있다.",
    "나는 {동물}을/를 좋아한다.",
    "이 {작품}은/는 정말 {느낌}.",
    "I go to the {place}.",
    "I went to the {place} on {day}.",
    "We walked to the {place} in the {time}.",
    "She goes to the {place} with her {person}.",
    "He takes the {vehicle} to the {place}.",
    "My {person} is at the {place}.",
    "My {person} likes {food}.",
    "I eat {food} in the {time}.",
    "I drink {drink} in the {time}.",
    "She ate {food} and drank {drink}.",
    "I bought a/an {thing} for my {person}.",
    "My {person} gave me a/an {thing}.",
    "My {thing} is {colour}.",
    "She studies {subject} at school.",
    "Today is {day}.",
    "The weather is {weather} today.",
    "We have a/an {animal} at home.",
    "I have a/an {colour} {animal}.",
    "The {work} was {praise}, I loved it.",
    "The {work} was {blame}, I hated it.",
    "This is a/an {praise} {work}.",
    "This is a/an {blame} {work}.",
    "Hello, I am a {kind} model.",
    "Hello I'm a {kind} model.",
)


def story(rng: random.Random) -> str:
    """Draw one sentence."""
    template = rng.choice(_TEMPLATES)
    return agree(_FIELD.sub(lambda field: slot(_draw(_WORDS[field[1]], rng)), template))


def story_words() -> frozenset[str]:
    """Return every word that can fill a place in a story."""
    return frozenset(word for group in _WORDS.values() for word in group)


def _draw(group: tuple[str, ...], rng: random.Random) -> str:
    return rng.choices(group, weights=[1 / place for place in range(1, len(group) + 1)])[0]
