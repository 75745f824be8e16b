#!/bin/sh
# Tries slurm.sh on a real slurmctld and slurmd, on this machine alone. As root, with Debian's
# packages slurm-wlm and munge, in the folder of the project, its virtual environment active:
#
#     sh benchmarks/slurm_test.sh
#
# All that it starts and writes is in a temporary folder, with a clone of the project: three runs on
# CartPole.
set -eu

here=$(pwd)
folder=$(mktemp -d)
node=$(hostname -s)
cleanup() {
    for name in slurmd slurmctld munged; do
        [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2>/dev/null
    done
    rm -rf "$folder"
}
trap cleanup EXIT

# Munge signs the messages; it wants its key and socket in folders that nobody else may write.
mkdir -p "$folder/munge" "$folder/state" "$folder/spool"
chmod 755 "$folder" "$folder/munge"
dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 2>/dev/null
chmod 600 "$folder/munge/key"
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"

cat > "$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=all Nodes=$node Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF="$folder/slurm.conf"
slurmctld -L "$folder/slurmctld.log"
slurmd -L "$folder/slurmd.log"
for _ in $(seq 30); do
    sinfo -h -o %T 2>/dev/null | grep -q idle && break
    sleep 1
done
sinfo

git clone -q "$here" "$folder/project"
cd "$folder/project"
python benchmarks/run.py --scripts ppo --env-ids CartPole-v1 --seeds 901 902 903 --eval-episodes 1 \
    --print > jobs.txt
cat jobs.txt
sbatch --wait --mem=0 --array="1-$(wc -l < jobs.txt)" benchmarks/slurm.sh jobs.txt
cat slurm-*.out
rows=$(grep -c "^ppo,CartPole-v1,90[123]," benchmarks/results/runs.csv)
[ "$rows" = 3 ] || { echo "$rows rows in runs.csv, not 3"; exit 1; }
echo "3 jobs, 3 rows in runs.csv"
