"""String formats as patterns, and tests of what terminals match, with llguidance itself."""

from __future__ import annotations

from functools import lru_cache

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from headway.serve.ecma_regex import LarkTerminal, escape_json, parse_pattern
from headway.serve.schemas.values import StringPattern

# For each format, a pattern that matches only valid strings, and one that matches all of them.
_HOURS = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOURS}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_HOURS})"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = (
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LABEL = "[A-Za-z0-9](?:-?[A-Za-z0-9]){0,31}"  # at most 63 characters, without IDNA prefixes
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,8}}"
_NAMES = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_EMAIL = rf"^(?=[^@]{{1,64}}@){_NAMES}(?:\.{_NAMES})*@(?=.{{1,253}}$){_HOST}$"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_PATH = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_QUERY = rf"(?:\?(?:{_PATH}|[/?])*)?(?:#(?:{_PATH}|[/?])*)?"
_URI = (
    rf"[A-Za-z][A-Za-z0-9+.-]*:(?://(?:{_HOST}(?::[0-9]{{1,5}})?(?:/{_PATH}*)*|/{_PATH}+(?:/{_PATH}*)*)"
    rf"|{_PATH}+(?:/{_PATH}*)*|/{_PATH}+(?:/{_PATH}*)*){_QUERY}"
)
_SEGMENT = _PATH.replace(",;=:@-", ",;=@-")  # no scheme
_PARTS = "(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DAYS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
_UUID = "^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
_POINTER = r"(?:/(?:[^/~]|~[01])*)*"
_ATOM = (
    r"(?:(?:[A-Za-z0-9_ ,:;=@#%&!'\"<>/~`-]|\\[dDwWsSnrtfv.*+?()\[\]{}^$|\\/-]|\."
    r"|\[\^?(?:[A-Za-z0-9_ ,:;=@#%&!'\"<>/~`.*+?()$|]|A-Z|a-z|0-9|\\[dDwWsSnrt\]\\-])+\])(?:[*+?]|\{[1-9]\})?)"
)
# Strings that are generated: always valid, but not all valid ones (no leap seconds, no quoted addresses).
FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": f"^P(?:[0-9]+W|{_DAYS}(?:T{_PARTS})?|T{_PARTS})$",
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "hostname": f"^(?=.{{1,253}}$){_HOST}$",
    "idn-hostname": f"^(?=.{{1,253}}$){_HOST}$",
    "ipv4": f"^{_IPV4}$",
    "ipv6": "^(?:(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}"
    + "".join(f"|(?:[0-9a-fA-F]{{1,4}}:){{1,{7 - n}}}(?::[0-9a-fA-F]{{1,4}}){{1,{n}}}" for n in range(1, 7))
    + "|::|::[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4}){0,6}|(?:[0-9a-fA-F]{1,4}:){1,7}:)$",
    "uuid": _UUID,
    "uri": f"^{_URI}$",
    "iri": f"^{_URI}$",
    "uri-reference": rf"^(?:{_URI}|/?(?:{_SEGMENT}+(?:/{_PATH}*)*)?{_QUERY})$",
    "iri-reference": rf"^(?:{_URI}|/?(?:{_SEGMENT}+(?:/{_PATH}*)*)?{_QUERY})$",
    "uri-template": rf"^(?:{_PATH}|[/?#]|\{{[A-Za-z0-9_]+(?:,[A-Za-z0-9_]+)*\}})*$",
    "json-pointer": f"^{_POINTER}$",
    "relative-json-pointer": f"^(?:0|[1-9][0-9]*)(?:#|{_POINTER})$",
    "regex": rf"^\^?(?:{_ATOM}|\((?:\?:)?{_ATOM}+(?:\|{_ATOM}+)*\)[*+?]?)*(?:\|(?:{_ATOM})+)*\$?$",
}
# Patterns that match every string of a format, to exclude a format.
NECESSARY_PATTERNS = {
    "date": r"^[0-9]{4}-",
    "time": r"^[0-9]{2}:",
    "date-time": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]",
    "duration": "^P",
    "email": "@",
    "idn-email": "@",
    "hostname": r"^[^\s/:@]{1,253}$",
    "idn-hostname": r"^[^\s/:@]{1,253}$",
    "ipv4": r"^[0-9.]+$",
    "ipv6": "^[0-9a-fA-F:.]*:[0-9a-fA-F:.]*$",
    "uuid": _UUID,
    "uri": "^[A-Za-z][A-Za-z0-9+.-]*:",
    "iri": "^[A-Za-z][A-Za-z0-9+.-]*:",
    "json-pointer": "^(?:/|$)",
}

LIMITS = LLParserLimits(precompute_large_lexemes=False, verbose_errors=False)


class _Bytes:
    """A tokenizer whose tokens are bytes, after special tokens that a grammar may name."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, specials: int) -> None:
        self.eos_token_id = specials
        self._first = specials + 1
        self.tokens = [*(b"\xff<%d>" % i for i in range(specials + 1)), *(bytes([i]) for i in range(255))]

    def __call__(self, text: str) -> list[int]:
        return [self._first + byte for byte in text.encode()]


@lru_cache(maxsize=8)
def byte_tokenizer(specials: int = 0) -> LLTokenizer:
    return LLTokenizer(_Bytes(specials))  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def pattern_terminal(pattern: StringPattern, source: str) -> LarkTerminal:
    """Strings that contain a match of a pattern, escaped as in JSON."""
    text = FORMATS[pattern.text] if pattern.is_format else pattern.text
    return parse_pattern(text, source).terminal(searched=True, quoted=True)


@lru_cache(maxsize=4096)
def is_void(terminal: LarkTerminal) -> bool:
    """Whether a terminal is known to match nothing."""
    matcher = LLMatcher(byte_tokenizer(), f"start: T\nT: {terminal.lark()}", log_level=0, limits=LIMITS)
    if matcher.is_error() or matcher.is_accepting():
        return False
    matcher.compute_bitmask()
    return matcher.is_stopped() and "NoExtension" in (matcher.get_error() or str(matcher.stop_reason()))


@lru_cache(maxsize=1024)
def _matcher(lark: str) -> LLMatcher:
    return LLMatcher(byte_tokenizer(), f"start: T\nT: {lark}", log_level=0, limits=LIMITS)


@lru_cache(maxsize=1 << 16)
def matches(terminal: LarkTerminal, text: str) -> bool:
    """Whether a terminal of quoted strings matches a string."""
    matcher = _matcher(terminal.lark())
    consumed = matcher.try_consume_tokens([1 + byte for byte in escape_json(text).encode()])
    is_match = consumed == len(escape_json(text).encode()) and matcher.is_accepting()
    matcher.reset()
    return is_match
