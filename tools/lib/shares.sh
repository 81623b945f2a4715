# shellcheck shell=bash
# Tests of one program, shared out to processes side by side. Sourced, never run.

# tests_of PROGRAM [FILTER...]: prints the names of its tests.
tests_of() {
    local list
    list=$("$1" --list "${@:2}") || return
    sed -n 's/: test$//p' <<<"$list"
}

# in_shares COUNT COMMAND...: runs COMMAND so many times side by side, each with its share of the names in `names` behind it.
# Each prints whole lines.
in_shares() {
    local count=$1 mine i j pids=() bad=0
    shift
    # shellcheck disable=SC2154 # the caller's
    for ((i = 0; i < count && i < ${#names[@]}; i++)); do
        mine=()
        for ((j = i; j < ${#names[@]}; j += count)); do mine+=("${names[j]}"); done
        "$@" "${mine[@]}" 2>&1 | sed -u '' &
        pids+=($!)
    done
    for i in "${pids[@]}"; do wait "$i" || bad=1; done
    return $bad
}
