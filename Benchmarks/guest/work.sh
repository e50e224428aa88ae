# What Benchmarks/run work runs in the guest: what CI machines do. One line a task and round: TASK name microseconds result.
cd /tmp
{
    printf '#include <stdio.h>\n#include <string.h>\n'
    for i in $(seq 120); do
        printf 'struct s%d { int a; double b; char c[16]; struct s%d *next; };\n' $i $i
        printf 'static int f%d(struct s%d *s, int n) { int t = 0; for (int i = 0; i < n; i++) { if (s->a > i * %d) t += s->a ^ i; else t -= strlen(s->c); switch (t & 7) { case 1: t += 3; break; case 4: t *= 5; break; default: t--; } if (s->next) s = s->next; } return t; }\n' $i $i $i
        printf 'int g%d(int n) { struct s%d x = { n, 1.5 * n, "abc", 0 }; x.next = &x; x.b = x.b * %d + 1; printf("%%d %%f\\n", f%d(&x, n), x.b); return n; }\n' $i $i $i $i
    done
    printf 'int main(void) { return 0; }\n'
} >x.c
task() { name=$1; shift; begin=$(date +%s%N); "$@" >/dev/null 2>&1 || echo "TASK $name failed"; end=$(date +%s%N); echo "TASK $name $(((end - begin) / 1000)) 0"; }
children() { for i in $(seq 200); do /bin/true; done; }
pipes() { for i in $(seq 60); do echo "a b c $i" | sed 's/b/x/' | grep -q x && expr $i + 1; done; }
perls() { for i in $(seq 20); do perl -e 'my %h; for my $i (1..500) { $h{"k$i"} = $i } print join(",", sort keys %h)'; done; }
pythons() { for i in 1 2 3 4 5 6 7 8; do python3 -c 'import json, re, argparse, subprocess'; done; }
archive() { tar c /usr/share/doc /usr/share/perl5 /etc | gzip -1 | sha256sum; }
for round in $(seq "$1"); do
    task gcc-O2 gcc -O2 x.c -o x
    task gcc-O0 gcc -O0 x.c -o x
    task children children
    task pipes pipes
    task perl perls
    task python-starts pythons
    task archive archive
done
