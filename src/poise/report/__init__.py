"""One page about a run: `report.write_report(RunDir(folder))` reads the folder, writes the HTML.

report    the story: one function per section
data      the section on the data
curves    the sections made of figures
incidents the section on what went wrong and what was done
verdict   what the files say about the run, worst first, with what to do
metrics   what each score means
figures   plotly figures from log rows
pictures  image files as data URIs
page      HTML: escaping, tables, the shell, the style
words     numbers as people write them
folder    the files of a run, read tolerantly
"""
