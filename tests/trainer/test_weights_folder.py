import signal
import subprocess
import sys
from pathlib import Path

from palestra.trainer.weights_folder import WeightsFolder

OWNER = """
import sys
from pathlib import Path
from palestra.trainer.weights_folder import WeightsFolder

folder = WeightsFolder(Path(sys.argv[1]))
(folder.path / "model.safetensors").write_bytes(bytes(1000))
print(folder.path, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    bystander = tmp_path / "palestra-weights-of-mine"
    bystander.mkdir()
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as owner:
        assert owner.stdout is not None
        theirs = Path(owner.stdout.readline().strip())
        ours = WeightsFolder(tmp_path)
        assert theirs.exists() and ours.path.exists()
        owner.send_signal(signal.SIGKILL)
    assert (theirs / "model.safetensors").exists()
    another = WeightsFolder(tmp_path)
    assert not theirs.exists()
    assert ours.path.exists() and bystander.exists()
    another.close()
    ours.close()
    assert list(tmp_path.iterdir()) == [bystander]
