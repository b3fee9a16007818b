# Sourced: uv goes where this machine's pip goes, as it does for echoes-appliance.
index=$(python3 -m pip config get global.index-url 2> /dev/null || python3 -m pip config get :env:.index-url 2> /dev/null || true)
if [ -n "$index" ]; then export UV_DEFAULT_INDEX="$index"; fi
export UV_SYSTEM_CERTS=true UV_HTTP_TIMEOUT=180
