# bash completion for plash and its commands; `plash complete` knows what can stand where.

_plash() {
    local rest=${COMP_LINE:0:COMP_POINT} words=() word i current candidate found=() more=

    # readline splits at colons and equals signs too: what stands together is one word.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i == 0)) || [[ $rest == [[:space:]]* ]]; then
            rest=${rest#"${rest%%[![:space:]]*}"}
            words+=('')
        fi
        [[ $rest == "$word"* ]] || word=$rest
        words[-1]+=$word
        rest=${rest#"$word"}
    done
    current=${words[-1]}
    case ${words[0]##*/} in
        plash-*) words[0]=${words[0]##*/plash-} && words[0]=${words[0]#plash-} ;;
        *) words=("${words[@]:1}") ;;
    esac
    # As the shell will take them, but for what would run something.
    for i in "${!words[@]}"; do
        words[i]=$(xargs printf %s 2>/dev/null <<<"${words[i]}" || printf %s "${words[i]//[\\\"\']/}")
    done

    while IFS=$'\t' read -r candidate _; do
        case $candidate in
            :*) more=$candidate ;;
            *) found+=("$candidate") ;;
        esac
    done < <(plash complete -- "${words[@]}" 2>/dev/null)

    # What is in front of the last colon stays on the line.
    local before=
    if [[ $COMP_WORDBREAKS == *:* && $current == *:* ]]; then
        before=${current%:*}:
    fi
    if [[ $COMP_WORDBREAKS == *=* && ${current#"$before"} == *=* ]]; then
        before=${current%=*}=
    fi
    local quote=${current:0:1}
    COMPREPLY=()
    for candidate in "${found[@]}"; do
        case $quote in
            [\"\']) ;;
            *) printf -v candidate %q "$candidate" ;;
        esac
        COMPREPLY+=("${candidate#"$before"}")
    done
    if [[ ${COMPREPLY[*]} == *= ]]; then
        compopt -o nospace
    fi
    case $more in
        :files) compopt -o default ;;
        :directories) compopt -o dirnames ;;
        :commands)
            compopt -o default
            mapfile -t COMPREPLY < <(compgen -c -- "$current")
            ;;
    esac
}

complete -F _plash plash
for _plash_command in $(compgen -c plash-); do
    complete -F _plash "$_plash_command"
done
unset _plash_command
