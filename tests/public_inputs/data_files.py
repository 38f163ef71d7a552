"""Public reports about data files: encodings, quotes, separators, line ends, missing values, foreign files."""

from __future__ import annotations

import gzip
import json

from llm_detox.data.labels import read_label
from llm_detox.data.records import clean_text, same_text_key
from tests.helpers.damage import LFS_POINTER
from tests.public_inputs.case import Case, Refused, folder_of, of, table

_LONG = "word " * 40_000  # more than csv's own limit of a field
_PACKED = gzip.compress("".join(json.dumps({"text": f"{number}"}) + "\n" for number in range(5000)).encode())


def _jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


ENCODINGS = (
    Case("huggingface/datasets#8241", "JSON lines behind a byte order mark",
         table("a.jsonl", b"\xef\xbb\xbf" + _jsonl("one", "two"), "text"), ["one", "two"]),
    Case("UKGovernmentBEIS/inspect_ai#5474", "CSV as Excel saves it, with a byte order mark",
         table("a.csv", b"\xef\xbb\xbfinput,target\na,b\n", "input"), ["a"]),
    Case("pandas-dev/pandas#4793", "a byte order mark before a quoted header",
         table("a.csv", b'\xef\xbb\xbf"Name","Team"\n"x","y"\n'), [{"Name": "x", "Team": "y"}]),
    Case("pandas-dev/pandas#36343", "an invisible character around the name of a later column",
         table("a.csv", "label,\ufefftext\n0,a\n", "text"), ["a"]),
    Case("wireservice/csvkit#168", "Latin-1 that begins with é",
         table("a.csv", b"text\n\xe9t\xe9\n"), Refused(r"a\.csv, line 2: not UTF-8 \(byte 1 of the line\)")),
    Case("codeforbirmingham/Open-Disclosure#7", "a dash of Windows-1252",
         table("a.csv", b"text\na \x96 b\n"), Refused(r"line 2: not UTF-8 \(byte 3")),
    Case("jamesmishra/mysqldump-to-csv#23", "UTF-16 with its mark",
         table("a.csv", "text\na\n".encode("utf-16")), Refused("line 1: not UTF-8")),
    Case("Data-Centric-AI-Community/fg-data-profiling#153", "a NUL character inside a text",
         table("a.csv", "text,n\na\0b,1\n", "text"), ["a\0b"]),
    Case("agent0ai/agent-zero#1773", "an emoji written as two escapes",
         table("a.jsonl", r'{"text": "\ud83c\udf78"}', "text"), ["🍸"]),
    Case("umran666/UniqToken#10", "half a surrogate pair in a text",
         table("a.jsonl", r'{"text": "hello \ud800 world"}'), Refused("line 1: .*half of a surrogate pair")),
    Case("UKGovernmentBEIS/inspect_ai#3802", "a text cut in the middle of a surrogate pair",
         table("a.jsonl", r'{"text": "ok \ud83d"}'), Refused("line 1: .*half of a surrogate pair")),
    Case("UKGovernmentBEIS/inspect_ai#5230", "half a surrogate pair in a key",
         table("a.jsonl", r'{"text": "a", "\udc00": 1}'), Refused("line 1: .*half of a surrogate pair")),
    Case("ultrajson/ultrajson#125", "half a pair before a replacement character",
         table("a.jsonl", r'{"text": "\ud977\ufffd"}'), Refused("half of a surrogate pair")),
    Case("openai/tiktoken#82", "the other half alone, from a PDF",
         table("a.jsonl", r'{"text": "\udbc0"}'), Refused("half of a surrogate pair")),
    Case("pandas-dev/pandas#2741", "NUL characters where values are missing",
         table("a.csv", "x,y\n \0\0\0,Reg\nI,Swp\n", "y"), ["Reg", "Swp"]),
    Case("pandas-dev/pandas#19886", "text behind a NUL character",
         of(lambda: clean_text("\0test")), "test"),
    Case("pandas-dev/pandas#5500", "an end-of-file character in a value",
         table("a.csv", "a,b\n1\x1a,2\n", "b"), ["2"]),
)

QUOTES = (
    Case("pandas-dev/pandas#22814", "a quote that is never closed",
         table("a.csv", 'a,b\n"x,1\ny,2\n'), Refused(r"a\.csv, line 2: not valid CSV: unexpected end of data")),
    Case("pandas-dev/pandas#22661", "tabs, one field in quotes and one with a quote at its beginning",
         table("a.tsv", 'n\ttext\n3\tabc\n4\t"abc"\n5\t"error\n', "text"), ["abc", "abc", '"error']),
    Case("tilo/smarter_csv#283", "tabs, and inches written with a quote",
         table("a.tsv", 'text\tn\n20" pipe\t1\n"\t2\n', "text"), ['20" pipe', '"']),
    Case("google-research-datasets/wit#3", "tabs, and a line end inside quotes",
         table("a.tsv", 'n\ttext\n1\t"x\ny"\n'), Refused("line 3: the row does not have the header's 2 columns")),
    Case("NVIDIA/cudf#2398", "a quote at the end of a field without quotes",
         table("a.csv", 'a,b,c\n3,/images",500\n4,/abc,200\n', "b"), ['/images"', "/abc"]),
    Case("apple/turicreate#1692", "blanks before the quotes, and one never closed",
         table("a.csv", 'a, b\n"a", "b"\n"c", "d\n'), Refused("line 3: not valid CSV: unexpected end of data")),
    Case("pandas-dev/pandas#15910", "a letter behind a closing quote",
         table("a.csv", 'a\n1\n"a"b\n'), Refused("line 3: not valid CSV: ',' expected after '\"'")),
    Case("pandas-dev/pandas#14459", "a line end inside quotes, and one beside quotes that open nothing",
         table("a.csv", 'a,b,c\n1,"a\nb",3\n2,c",4\n', "b"), ["a\nb", 'c"']),
    Case("simonw/csvs-to-sqlite#15", "the last field opens a quote",
         table("a.csv", 'a,b\n1,"never closed\n'), Refused("unexpected end of data")),
    Case("minimaxir/gpt-2-simple#214", "commas in a text without quotes",
         table("a.csv", "text\nI ate pie, ice cream, and cookies\n"),
         Refused("line 2: the row does not have the header's 1 columns")),
    Case("TabViewer/tabview#150", "a field of 200,000 characters", table("a.csv", f"text\n{_LONG}\n", "text"), [_LONG]),
    Case("abrignoni/RLEAPP#433", "the same between tabs", table("a.tsv", f"a\ttext\n1\t{_LONG}\n", "text"), [_LONG]),
)

COLUMNS = (
    Case("pandas-dev/pandas#7160", "a column that is there twice",
         table("a.csv", "a,b,a\n0,1,2\n"), Refused("line 1: two columns are called 'a'")),
    Case("pandas-dev/pandas#19592", "a row of numbers in place of the header",
         table("a.csv", "Flows,9,1,4,0,0\n1,2,3,4,5,6\n"), Refused("line 1: two columns are called '0'")),
    Case("ivonajdenkoska/tulip#5", "tabs in a file called .csv",
         table("a.csv", "text\tlabel\na\t1\n", "text"),
         Refused(r"line 1: the columns are separated by '\\t', not by ','")),
    Case("oc-courses/perfectionnez_vous_en_python#5", "semicolons",
         table("a.csv", "text;label\na;1\n", "text"), Refused("line 1: the columns are separated by ';', not by ','")),
    Case("ohadmata/shmessy#71", "one column alone", table("a.csv", "header_name\nhello\nworld\n", "header_name"),
         ["hello", "world"]),
    Case("minimaxir/gpt-2-simple#162", "an empty field between tabs",
         table("a.tsv", "text\tlabel\n\t1\n", "text"), [""]),
    Case("ludwig-ai/ludwig#85", "another name than the one asked for",
         table("a.csv", "comment\na\n", "text"), Refused("the column 'text' is missing[\\s\\S]*columns here: comment")),
)

MISSING = (
    Case("pandas-dev/pandas#32084", "the text null", table("a.csv", "text\nnull\n", "text"), ["null"]),
    Case("pandas-dev/pandas#24681", "the texts n/a and N/A between tabs",
         table("a.tsv", "a\tb\nn/a\tN/A\n"), [{"a": "n/a", "b": "N/A"}]),
    Case("OasisLMF/OasisLMF#307", "the text NA", table("a.csv", "code,x\nNA,1\n", "code"), ["NA"]),
    Case("bokeh/bokeh#5764", "the text NaN", table("a.csv", "text\nNaN\n", "text"), ["NaN"]),
    Case("pandas-dev/pandas#10205", "an empty text", table("a.csv", "a,b,c\nfoo,,bar\n", "b"), [""]),
    Case("pandas-dev/pandas#48712", "a label called null", of(lambda: read_label("null", "here")),
         Refused("the label 'null' is neither toxic nor clean")),
    Case("ICRAR/ijson#139", "NaN in JSON: a missing value", table("a.jsonl", '{"text": "a", "scores": [0.0, NaN]}'),
         [{"text": "a", "scores": [0.0, None]}]),
    Case("tier4/driving_log_replayer#108", "Infinity in JSON", table("a.jsonl", '{"text": "a", "score": Infinity}'),
         Refused("line 1: .*Infinity is no number")),
    Case("im-anishraj/arnio#2150", "-Infinity in JSON", table("a.jsonl", '{"text": "a"}\n{"score": -Infinity}'),
         Refused("line 2: .*-Infinity is no number")),
    Case("jeroen/jsonlite#281", "+Infinity in JSON", table("a.jsonl", '{"text": "a", "score": +Infinity}'),
         Refused("line 1: not valid JSON: Expecting value at column 24")),
)

LINES = (
    Case("huggingface/datasets#3729", "a paragraph separator inside a line of text",
         table("a.txt", "one\u2029still one\ntwo\n", "text"), ["one\u2029still one", "two"]),
    Case("huggingface/datasets#3804", "other characters at which str.splitlines parts",
         table("a.txt", "a\x0bb\x1cc\x85d\ne\n", "text"), ["a\x0bb\x1cc\x85d", "e"]),
    Case("datalad/datalad#3523", "a line separator inside a JSON text",
         table("a.jsonl", '{"text": "author\u2028"}\n', "text"), ["author\u2028"]),
    Case("huggingface/datasets#622", "old line ends in a text file", table("a.txt", "a\rb\r\nc\n", "text"),
         ["a", "b", "c"]),
    Case("huggingface/datasets#1989", "a carriage return inside a field between tabs",
         table("a.tsv", "text\tn\nwaitressing job. \r (x)\t1\n"), Refused("line 2: .*new-line character")),
    Case("scikit-hep/awkward#437", "several objects on one line",
         table("a.jsonl", '{"text": "a"} {"text": "b"}\n'), Refused("line 1: not valid JSON: Extra data")),
    Case("scikit-hep/awkward#543", "an object over several lines", table("a.jsonl", '{"one": 1,\n"two": 2.2,\n'),
         Refused("line 1: not valid JSON")),
)

FILES = (
    Case("google-research-datasets/natural-questions#24", "a compressed file that was cut",
         table("a.jsonl.gz", _PACKED[:-500]), Refused("behind line [0-9]+: the compressed file is damaged or cut")),
    Case("InertExpert2911/Mutual_Fund_Data#1", "a Git LFS pointer in place of Parquet",
         table("a.parquet", LFS_POINTER), Refused("a Git LFS pointer lies in the file's place[\\s\\S]*git lfs pull")),
    Case("policy-gradient/GRPO-Zero#1", "the same in place of CSV",
         table("a.csv", LFS_POINTER), Refused("a Git LFS pointer lies in the file's place")),
    Case("huggingface/datasets#4077", "Parquet without its end",
         table("a.parquet", b"PAR1" + b"\0" * 400), Refused("not a whole Parquet file: .*magic bytes not found")),
    Case("Farama-Foundation/Minari#97", "what the Finder leaves in a folder",
         folder_of({".DS_Store": "\0\0\0\1Bud1", "a.jsonl": '{"text": "a"}\n'}), [{"text": "a"}]),
    Case("OpenNeuroOrg/openneuro#2520", "a file's double with its attributes",
         folder_of({"._a.jsonl": "\0\5\x16\7", "a.jsonl": '{"text": "a"}\n'}), [{"text": "a"}]),
    Case("mne-tools/mne-python#7867", "a whole folder of them",
         folder_of({"__MACOSX/._a.csv": "\0\5\x16\7", "a.csv": "text\na\n"}), [{"text": "a"}]),
    Case("BGmi/BGmi#8", "the folder of a file server for the Macintosh",
         folder_of({".AppleDouble/a.csv": "\0\5\x16\7", "a.csv": "text\na\n"}), [{"text": "a"}]),
)

TEXTS = (
    Case("mozilla/bleach#93", "a broken heart", of(lambda: clean_text("some text </3")), "some text </3"),
    Case("rmmh/skybot#74", "an entity of HTML", of(lambda: clean_text("Ich t&ouml;te")), "Ich töte"),
    Case("inveniosoftware/invenio#895", "an escaped comparison", of(lambda: clean_text("a &lt; b &amp;&amp; c")),
         "a < b && c"),
    Case("google-research/bert#138", "a vowel sign of Hindi",
         of(lambda: same_text_key("कु") == same_text_key("क")), False),
    Case("RasaHQ/rasa#5998", "a sentence in Hindi", of(lambda: same_text_key("50 क्या आपके पास").split()),
         ["50", "क्या", "आपके", "पास"]),
    Case("kurianbenoy/whisper_normalizer#25", "two words of Malayalam",
         of(lambda: len(same_text_key("എന്റെ ഭാഷ").split())), 2),
    Case("opensanctions/rigour#285", "a word with spacing marks", of(lambda: same_text_key("की")), "की"),
    Case("openai/whisper#2849", "a phrase of four words in Hindi",
         of(lambda: len(same_text_key("प्राचीन संस्कृतियों और जनजातियों").split())), 4),
)

CASES = ENCODINGS + QUOTES + COLUMNS + MISSING + LINES + FILES + TEXTS
