# What Benchmarks/run services runs in the guest: programs that take turns, a server and those that ask it. One line a task and round:
# TASK name microseconds result.
cd /tmp
systemctl start postgresql redis-server mariadb memcached nginx
until su postgres -c 'psql -c "select 1"' >/dev/null 2>&1 && redis-cli ping >/dev/null 2>&1 && mariadb -e 'select 1' >/dev/null 2>&1; do sleep 0.2; done
su postgres -c 'createdb b && pgbench -i -q b' >/dev/null 2>&1
head -c 4096 /dev/zero >/var/www/html/file
task() { name=$1; shift; begin=$(date +%s%N); "$@" >/dev/null 2>&1 || echo "TASK $name failed"; end=$(date +%s%N); echo "TASK $name $(((end - begin) / 1000)) 0"; }
selects() { su postgres -c 'pgbench -n -S -c 4 -t 1000 b'; }
transactions() { su postgres -c 'pgbench -n -c 4 -t 150 b'; }
for round in $(seq "$1"); do
    task postgres-selects selects
    task postgres-transactions transactions
    task redis redis-benchmark -q -n 10000 -t set,get -c 10
    task mariadb mariadb-slap --auto-generate-sql --auto-generate-sql-load-type=mixed --concurrency=4 --number-of-queries=1000
    task nginx ab -q -n 2000 -c 10 http://127.0.0.1/file
    task memcached memcslap --servers=127.0.0.1 --concurrency=4 --execute-number=1000
done
