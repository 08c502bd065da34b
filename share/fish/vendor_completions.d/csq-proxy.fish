# The program itself says what fits: its commands, options, projects and tools.
function __csq_proxy
    _CSQ_PROXY_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=$argv[1] _TYPER_COMPLETE_ARGS=(commandline -cp) csq-proxy 2>/dev/null
end
complete --command csq-proxy --no-files --condition "__csq_proxy is-args" --arguments "(__csq_proxy get-args)"
