"""Python imports this as it starts, where this folder is on its path; the patches wait for their modules."""

import os

if os.environ.get("AGENTGYM_OPENRLHF_CPU") == "1":
    import without_cuda  # type: ignore[import-not-found]

    without_cuda.install()
