"""Language tokens of multilingual translation models.

German is de_DE in mBART (Liu et al. 2020), __de__ in M2M-100 (Fan et al. 2020), deu_Latn in NLLB (2022) and >>deu<< in
OPUS-MT. A short code, such as de, stands for each of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tokenizers import Tokenizer

from headway.errors import UserError

_TOKEN = re.compile(r"([a-z]{2}_[A-Z]{2}|[a-z]{3}_[A-Z][a-z]{3})|__([a-z]{2,3})__|>>([A-Za-z_]{2,12})<<")
_MBART = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
_M2M100 = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu hy "
    "id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt ro ru "
    "sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
)
TOKENS_IN_ORDER = {  # as the models number them, after all pieces
    "mbart": _MBART.split(),
    "mbart50": (
        f"{_MBART} af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX "
        "sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
    ).split(),
    "m2m100": [f"__{code}__" for code in _M2M100.split()],
    "wmt21": [f"__{code}__" for code in ("en", "ha", "is", "ja", "cs", "ru", "zh", "de")],
}

# ISO 639-1 codes with the codes of FLORES-200, which NLLB uses; where ISO 639-3 has several, that of most speakers.
_PAIRS = (
    "af:afr am:amh ar:arb as:asm ay:ayr az:azj ba:bak be:bel bg:bul bm:bam bn:ben bo:bod bs:bos ca:cat cs:ces "
    "cy:cym da:dan de:deu dz:dzo ee:ewe el:ell en:eng eo:epo es:spa et:est eu:eus fa:pes ff:fuv fi:fin fj:fij "
    "fo:fao fr:fra ga:gle gd:gla gl:glg gn:grn gu:guj ha:hau he:heb hi:hin hr:hrv ht:hat hu:hun hy:hye id:ind "
    "ig:ibo is:isl it:ita ja:jpn jv:jav ka:kat ki:kik kk:kaz km:khm kn:kan ko:kor ks:kas ku:kmr ky:kir lb:ltz "
    "lg:lug li:lim ln:lin lo:lao lt:lit lv:lvs mg:plt mi:mri mk:mkd ml:mal mn:khk mr:mar ms:zsm mt:mlt my:mya "
    "nb:nob ne:npi nl:nld nn:nno no:nob ny:nya oc:oci om:gaz or:ory pa:pan pl:pol ps:pbt pt:por qu:quy rn:run "
    "ro:ron ru:rus rw:kin sa:san sc:srd sd:snd sg:sag si:sin sk:slk sl:slv sm:smo sn:sna so:som sq:als sr:srp "
    "ss:ssw st:sot su:sun sv:swe sw:swh ta:tam te:tel tg:tgk th:tha ti:tir tk:tuk tl:tgl tn:tsn tr:tur ts:tso "
    "tt:tat tw:twi ug:uig uk:ukr ur:urd uz:uzn vi:vie wo:wol xh:xho yi:ydd yo:yor zh:zho_Hans zu:zul"
)
_FLORES = {pair[:2]: pair[3:] for pair in _PAIRS.split()}


def language_code(token: str) -> str | None:
    """The code in a language token; None for any other token."""
    match = _TOKEN.fullmatch(token)
    return None if match is None else next(filter(None, match.groups()))


def language_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of a tokenizer's language tokens, by code."""
    added = tokenizer.get_added_tokens_decoder().items()
    return {code: token_id for token_id, token in sorted(added) if (code := language_code(token.content)) is not None}


def language_id(tokens: Mapping[str, int], language: str) -> int:
    """The id of a language, by its code or a short code. UserError for one that the model lacks."""
    requested = language.replace("-", "_").lower()
    by_code = {code.lower(): code for code in tokens}
    base, _, script = requested.partition("_")
    flores = _FLORES.get(base, base).lower()
    names = (requested, f"{flores.partition('_')[0]}_{script}" if script else flores)
    exact = [by_code[name] for name in names if name in by_code]
    matches = exact[:1] or [code for name, code in by_code.items() if name.partition("_")[0] in names]
    if len(matches) > 1:
        raise UserError(f"this model has several languages {language!r}; use one of {', '.join(matches)}")
    if not matches:
        raise UserError(f"this model has no language {language!r:.40}; use one of {', '.join(tokens)}")
    return tokens[matches[0]]
