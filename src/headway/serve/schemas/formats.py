"""String formats: for each, a pattern that matches only valid strings, and one that matches all of them."""

from __future__ import annotations

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
