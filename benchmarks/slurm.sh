#!/bin/sh
# A Slurm array: one job for each line of a file that `benchmarks/run.py ... --print` has written.
#
#     python benchmarks/run.py --scripts ppo trpo --seeds 101 102 103 --print > jobs.txt
#     sbatch --array=1-$(wc -l < jobs.txt)%50 benchmarks/slurm.sh jobs.txt    # at most 50 at a time
#
# Submit it in the folder of this project, with the virtual environment active, on a file system that
# all nodes share. A job that is requeued, or submitted again, goes on from its checkpoint; one that
# is in results/runs.csv already ends at once. benchmarks/slurm_test.sh tries this on one machine.
#SBATCH --job-name=policy-gradients
#SBATCH --cpus-per-task=1
#SBATCH --mem=3G
#SBATCH --requeue
#SBATCH --output=slurm-%A_%a.out

export OMP_NUM_THREADS=1
command=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")
echo "$command"
exec sh -c "$command"
