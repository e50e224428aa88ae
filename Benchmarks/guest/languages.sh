# What Benchmarks/run languages runs in the guest and natively: what other languages' compilers and runtimes do, half of which
# write their code as they run. One line a task and round: TASK name microseconds result.
mkdir -p /tmp/languages && cd /tmp/languages || exit 1
cat >a.js <<'X'
function task(name, f) { const begin = process.hrtime.bigint(); const r = f(); console.log(`TASK js-${name} ${(process.hrtime.bigint() - begin) / 1000n} ${r}`) }
function fib(n) { return n < 2 ? n : fib(n - 1) + fib(n - 2) }
task("fib", () => fib(30))
task("json", () => { let s = 0; const o = []; for (let i = 0; i < 20000; i++) o.push({ id: i, name: "n" + i, v: [i, i * 2, i * 3.5] }); for (let k = 0; k < 5; k++) s += JSON.parse(JSON.stringify(o)).length; return s })
task("sort", () => { let x = 12345, a = []; for (let i = 0; i < 200000; i++) { x = (x * 1103515245 + 12345) & 0x7fffffff; a.push(x) } a.sort((p, q) => p - q); return a[1000] })
task("regex", () => { let s = "", c = 0; for (let i = 0; i < 20000; i++) s += "key" + i + "=value" + (i * 7) + ";"; for (const m of s.matchAll(/(\w+)=(\w+);/g)) c += m[2].length; return c })
task("floats", () => { const a = new Float64Array(1 << 20); for (let k = 0; k < 10; k++) for (let i = 0; i < a.length; i++) a[i] = a[i] * 0.5 + i; return a.reduce((p, q) => p + q) })
task("map", () => { const m = new Map(); for (let i = 0; i < 300000; i++) m.set("k" + (i % 50000), i); return m.size })
task("functions", () => { let s = 0; for (let i = 0; i < 2000; i++) s += new Function("a", "return a*" + i + "+1")(i); return s })
X
cat >Main.java <<'X'
import java.util.*;
import java.util.function.Supplier;
public class Main {
    static int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
    static void task(String name, Supplier<Object> f) { long begin = System.nanoTime(); Object r = f.get(); System.out.println("TASK java-" + name + " " + (System.nanoTime() - begin) / 1000 + " " + r); }
    public static void main(String[] a) {
        task("fib", () -> fib(32));
        task("map", () -> { HashMap<String, Integer> m = new HashMap<>(); for (int i = 0; i < 300000; i++) m.merge("k" + i % 50000, 1, Integer::sum); return m.size(); });
        task("sort", () -> { int[] x = new int[1000000]; int s = 12345; for (int i = 0; i < x.length; i++) { s = s * 1103515245 + 12345; x[i] = s; } Arrays.sort(x); return x[1000]; });
        task("stream", () -> java.util.stream.IntStream.range(0, 2000000).mapToObj(i -> i).filter(i -> i % 3 == 0).mapToLong(i -> i).sum());
    }
}
X
cat >a.go <<'X'
package main
import ("fmt"; "sort"; "time")
func fib(n int) int { if n < 2 { return n }; return fib(n-1) + fib(n-2) }
func task(name string, f func() int) { begin := time.Now(); r := f(); fmt.Println("TASK go-"+name, time.Since(begin).Microseconds(), r) }
func main() {
	task("fib", func() int { return fib(33) })
	task("channels", func() int { c := make(chan int); d := make(chan int); go func() { for x := range c { d <- x + 1 }; close(d) }(); s := 0; for i := 0; i < 200000; i++ { c <- i; s += <-d }; close(c); return s })
	task("map", func() int { m := map[string]int{}; for i := 0; i < 500000; i++ { m[fmt.Sprint("k", i%50000)]++ }; return len(m) })
	task("sort", func() int { a := make([]int, 500000); s := uint32(12345); for i := range a { s = s*1103515245 + 12345; a[i] = int(s) }; sort.Ints(a); return a[1000] })
}
X
cat >a.rb <<'X'
def task(name); begun = Process.clock_gettime(Process::CLOCK_MONOTONIC); r = yield; puts "TASK ruby-#{name} #{((Process.clock_gettime(Process::CLOCK_MONOTONIC) - begun) * 1e6).to_i} #{r}"; end
def fib(n) = n < 2 ? n : fib(n - 1) + fib(n - 2)
task("fib") { fib(25) }
task("hash") { h = Hash.new(0); 200000.times { |i| h["k#{i % 5000}"] += 1 }; h.size }
task("scan") { s = +""; 100000.times { |i| s << i.to_s }; s.scan(/12\d/).size }
X
cat >a.lua <<'X'
local function task(name, f) local begun = os.clock(); local r = f(); print("TASK luajit-" .. name .. " " .. math.floor((os.clock() - begun) * 1e6) .. " " .. tostring(r)) end
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
task("fib", function() return fib(34) end)
task("floats", function() local s = 0.0 for i = 1, 50000000 do s = s + i * 0.5 end return s end)
task("strings", function() local t = {} for i = 1, 200000 do t[#t + 1] = tostring(i) end return #table.concat(t) end)
X
cat >a.php <<'X'
<?php
function task($name, $f) { $begin = hrtime(true); $r = $f(); echo "TASK php-$name " . intdiv(hrtime(true) - $begin, 1000) . " $r\n"; }
function fib($n) { return $n < 2 ? $n : fib($n - 1) + fib($n - 2); }
task("fib", fn() => fib(27));
task("array", function () { $a = []; for ($i = 0; $i < 1000000; $i++) $a["k" . ($i % 5000)] = $i; return count($a); });
X
cat >a.hs <<'X'
import qualified Data.Map.Strict as M
main = print (M.size (foldr (\i m -> M.insertWith (+) (i * 7919 `mod` 100003) 1 m) M.empty [1 .. 200000 :: Int]))
X
cat >a.py <<'X'
import time
def task(name, f): begin = time.perf_counter(); r = f(); print("TASK", name, int((time.perf_counter() - begin) * 1e6), r)
begin = time.perf_counter()
import numpy
print("TASK numpy-start", int((time.perf_counter() - begin) * 1e6), 0)
task("numpy-product", lambda: int(numpy.dot(numpy.ones((500, 500)), numpy.ones((500, 500))).sum()))
task("numpy-sort", lambda: numpy.sort(numpy.random.RandomState(1).rand(1000000))[1000])
X
task() { name=$1; shift; begin=$(date +%s%N); "$@" >/dev/null 2>&1 || echo "TASK $name failed"; end=$(date +%s%N); echo "TASK $name $(((end - begin) / 1000)) 0"; }
export HOME=/tmp/languages GOCACHE=/tmp/languages/cache GO111MODULE=off
for round in $(seq "${1:-1}"); do
    task js-start node -e 0
    node a.js
    task java-compile javac Main.java
    java Main
    rm -rf cache
    task go-build go build -o ago a.go
    ./ago
    task ruby-start ruby -e 0
    ruby a.rb
    luajit a.lua
    php a.php
    task ghc-compile ghc -O -o ahs a.hs
    task ghc-run ./ahs
    rm -f a.hi a.o
    python3 a.py
done
