"""One page about a run: `report.write_report(RunDir(folder))` reads the folder, writes the HTML.

Beside it, `evaluation.write_evaluation(folder)` for anybody's samples, and
`comparison.write_comparison(folder)` for several runs that drew from the same seeds,
`sidebyside.write_side_by_side(runs, out)` for several runs from their files alone.

report        the story of a run: one function per section
evaluation    the page about samples, and their verdict for a terminal
comparison    the page about several runs that drew from the same seeds
sidebyside    the page about several runs from their files
rivals        of it, what can be compared and who is better
study         the page about a study of settings, and its section for a run
studychoice   of it, what to set, how sure that is, what mattered
studyfigures  of it, figures of trials
studymaps     of it, figures of all settings together
studyrecord   study.json, read tolerantly
card          the model card
data          the section on the data
samples       the section on samples
curves        the sections made of figures
scores        one record of scores: tables, classes, denoising, pictures, protocol
progress      scores over training, guidance against averaging
incidents     the section on what went wrong and what was done
fidelity      fidelity against diversity over training, what was chosen afterwards
verdict       what the files say about the run, worst first, with what to do
steps         what to do next, in order, with commands
judgement     what one record of scores says about the samples
copying       of it, copies and learning by heart
conditioning  of it, classes and groups: missing, wrong, weak
reading       one metric with its interval, and what it allows to say
finding       a sentence, how serious it is, what to do
metrics       what each score means
figures       plotly figures from log rows
scorefigures  plotly figures of scores
pictures      image files as data URIs
page          HTML: escaping, tables, the shell, the style
words         numbers as people write them
folder        the files of a run, read tolerantly
"""
