//! What `--completions SHELL` prints: a script that completes flags and options, made of the table that reads them.

use std::fmt::Write;

use crate::cli::options::offered;

/// The flags, with what `--help` says of them.
const FLAGS: [(&str, &str, &str); 7] = [
    ("o", "", "options"),
    ("f", "foreground", "stay in the foreground"),
    ("d", "debug", "log every request"),
    ("s", "", "serve with one thread"),
    ("N", "", "the mount namespace of what is remounted"),
    ("h", "help", "print a short help"),
    ("V", "version", "print the version"),
];

/// The script for `shell`; `None` if there is none.
pub(super) fn completions(shell: &str) -> Option<String> {
    let words: Vec<String> = offered().flat_map(|(name, form)| spelled(name, form)).collect();
    match shell {
        "bash" => Some(bash(&words)),
        "zsh" => Some(zsh(&words)),
        "fish" => Some(fish(&words)),
        _ => None,
    }
}

/// `name`, `name=` or `name=VALUE` for each value that there is.
fn spelled(name: &str, form: Option<&str>) -> Vec<String> {
    match form {
        None => vec![name.to_owned()],
        Some(form) if form.contains('|') && !form.contains(['[', ':']) => {
            form.split('|').map(|value| format!("{name}={value}")).collect()
        }
        Some(_) => vec![format!("{name}=")],
    }
}

fn bash(words: &[String]) -> String {
    let flags: Vec<String> = FLAGS.iter().map(|(letter, ..)| format!("-{letter}")).collect();
    format!(
        "# bash completion of cowfs, made by `cowfs --completions bash`.
_cowfs() {{
	local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} before= reply
	# '=' is a word of its own to bash.
	if [ \"$word\" = = ] || [ \"$previous\" = = ]; then
		COMPREPLY=($(compgen -f -- \"${{word#=}}\"))
	elif [ \"$previous\" = -o ]; then
		case $word in *,*) before=${{word%,*}}, ;; esac
		COMPREPLY=($(compgen -P \"$before\" -W '{}' -- \"${{word##*,}}\"))
		for reply in \"${{COMPREPLY[@]}}\"; do case $reply in *=) compopt -o nospace ;; esac; done
	elif [ \"${{word:0:1}}\" = - ]; then
		COMPREPLY=($(compgen -W '{}' -- \"$word\"))
	else
		compopt -o filenames
		COMPREPLY=($(compgen -f -- \"$word\"))
	fi
}}
complete -F _cowfs cowfs mount.cowfs
",
        words.join(" "),
        flags.join(" ")
    )
}

fn zsh(words: &[String]) -> String {
    let mut text =
        "#compdef cowfs mount.cowfs\n# zsh completion of cowfs, made by `cowfs --completions zsh`.\n".to_owned();
    text += "_cowfs_options() {\n\tlocal -a words\n\twords=(\n";
    for word in words {
        let _ = writeln!(text, "\t\t'{word}'");
    }
    text += "\t)\n\tcompset -P '*,'\n\tcompadd -S '' -q -a words\n}\n_arguments \\\n";
    for (letter, long, what) in FLAGS {
        let action = match letter {
            "o" => ":options:_cowfs_options",
            "N" => ":namespace:_files",
            _ => "",
        };
        let repeated = if letter == "o" { "*" } else { "" };
        let _ = writeln!(text, "\t'{repeated}-{letter}[{what}]{action}' \\");
        if !long.is_empty() {
            let _ = writeln!(text, "\t'--{long}[{what}]' \\");
        }
    }
    text + "\t'1:branches:_files' '2:mountpoint:_files -/'\n"
}

fn fish(words: &[String]) -> String {
    let mut text = "# fish completion of cowfs, made by `cowfs --completions fish`.\n".to_owned();
    for (letter, long, what) in FLAGS {
        let long = if long.is_empty() { String::new() } else { format!(" -l {long}") };
        let list = match letter {
            "o" => " -x -a '(__cowfs_options)'",
            "N" => " -r",
            _ => "",
        };
        let _ = writeln!(text, "complete -c cowfs -s {letter}{long} -d '{what}'{list}");
    }
    text += "function __cowfs_options\n    set -l before (string replace -r '[^,]*$' '' -- (commandline -ct))\n";
    let _ = writeln!(text, "    printf '%s\\n' $before{{{}}}\nend", words.join(","));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_knows_every_option() {
        for shell in ["bash", "zsh", "fish"] {
            let script = completions(shell).unwrap();
            for (name, form) in offered() {
                for word in spelled(name, form) {
                    assert!(script.contains(&word), "{shell}: {word}");
                }
            }
        }
        assert_eq!(completions("csh"), None);
    }

    #[test]
    fn values_are_spelled_out_where_they_can_be() {
        assert_eq!(spelled("redirect", Some("on|off")), ["redirect=on", "redirect=off"]);
        assert_eq!(spelled("chroot", Some("DIR")), ["chroot="]);
        assert_eq!(spelled("dirs", Some("BRANCH[=RO|RW][:BRANCH...]")), ["dirs="]);
        assert_eq!(spelled("ro", None), ["ro"]);
    }
}
