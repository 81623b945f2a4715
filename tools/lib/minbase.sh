# shellcheck shell=bash
minbase_packages() { need_packages mmdebstrap; }
