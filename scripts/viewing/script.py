"""What Streamlit runs for each page that it draws, with the folder of the runs as its argument."""

import sys
from pathlib import Path

from scripts.viewing.pages import show

show(Path(sys.argv[1]))
