"""Wall time of the default run: start, data preparation and compilation included.

python -m benchmarks.default_run
"""

import subprocess
import sys
import tempfile
import time

from benchmarks import timing


def main():
    with tempfile.TemporaryDirectory() as folder:
        command = ['-m', 'train.main', '--config=configs/digits.py', f'--workdir={folder}/run']
        began = time.perf_counter()
        subprocess.run([sys.executable, *command, f'--config.data.directory={folder}'], check=True)
        seconds = time.perf_counter() - began
    print(timing.hardware())
    print(f'default run: {seconds:.1f} s')


if __name__ == '__main__':
    main()
