"""What Streamlit runs for each page that it draws, with the arguments of ./scripts/dashboard."""

import sys
from pathlib import Path

from scripts.viewing.pages import show

show(Path(sys.argv[1]))
