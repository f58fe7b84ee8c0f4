"""One page about a run: `report.write_report(RunDir(folder))` reads the folder, writes the HTML.

Beside it, `evaluation.write_evaluation(folder)` for anybody's samples, and
`comparison.write_comparison(folder)` for several runs.

report        the story of a run: one function per section
evaluation    the page about samples, and their verdict for a terminal
comparison    the page about several runs
data          the section on the data
samples       the section on samples
curves        the sections made of figures
scores        one record of scores: tables, classes, denoising, pictures, protocol
progress      scores over training, guidance against averaging
incidents     the section on what went wrong and what was done
verdict       what the files say about the run, worst first, with what to do
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
