# What Benchmarks/run python runs in the guest: parsing, JSON, regular expressions, sorting, a loop of floats.
import json, random, re, time
random.seed(7)
begin = time.perf_counter()
records = [{"id": i, "name": "item%d" % i, "values": [random.random() for _ in range(8)], "ok": i % 3 == 0} for i in range(3000)]
text = json.dumps(records)
checksum = 0
for _ in range(3): checksum += sum(len(r["name"]) for r in json.loads(text))
checksum += len(re.findall(r'"item(\d*)7"', text)) + len(re.sub(r"[0-9]+", "#", text))
words = re.split(r"\W+", text)
counts = {}
for word in words: counts[word] = counts.get(word, 0) + 1
checksum += len(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
tree = [compile("f(%d) + [x*%d for x in range(%d)][0] if a else {'k': (1, 2)}" % (i, i, i + 1), "x", "eval") for i in range(400)]
checksum += len(tree)
x = 0.5
for i in range(400000): x = 3.7 * x * (1 - x) + i * 1e-12
print("python", int((time.perf_counter() - begin) * 1e9), "%d-%.6f" % (checksum, x))
