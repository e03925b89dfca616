# fish completion for plash and its commands; `plash complete` knows what can stand where.

function __plash_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l command (basename -- $words[1])
    set -e words[1]
    if string match -q 'plash-*' -- $command
        set -p words (string replace plash- '' -- $command)
    end
    for line in (plash complete -- $words (string unescape -- $current) 2>/dev/null)
        switch $line
            case :files
                __fish_complete_path $current
            case :directories
                __fish_complete_directories $current
            case :commands
                complete -C "$current"
            case '*'
                echo $line
        end
    end
end

complete -c plash -f -a '(__plash_complete)'
for command in (complete -C plash- | string split -f 1 \t)
    complete -c $command -f -a '(__plash_complete)'
end
